"""The page as text: template, style, scripts, charts and rows in one file."""

import base64
import dataclasses
import hashlib
from functools import cache
from importlib import resources
from typing import Any

import altair as alt
import jinja2
import vl_convert

from raymerge.html_report.page import Page
from raymerge.html_report.rows import packed

TEMPLATE = "template.html.j2"
SCRIPTS = ("tables.js", "figures.js")


def html_page(page: Page) -> str:
    """Whole and valid HTML that loads nothing: its policy forbids it."""
    scripts = [_vega(), *map(_file, SCRIPTS)]
    template = _environment().get_template(TEMPLATE)
    return template.render(
        page=page, style=_file("style.css"), scripts=scripts, policy=_policy(scripts), data=_data(page)
    )


def _data(page: Page) -> dict[str, Any]:
    """What the scripts work with. The template writes it so that nothing in it ends the element it is in."""
    drawn = [*page.figures, *([page.costs_figure] if page.costs_figure else [])]
    return {
        "column": page.column,
        "figures": [
            {
                **{name: getattr(figure, name) for name in ("name", "title", "readings", "rows", "charts", "only")},
                "fields": [dataclasses.asdict(field) for field in figure.fields],
                "byColumn": figure.by_column,
            }
            for figure in drawn
        ],
        "rows": {field.name: packed(getattr(page.rows, field.name)) for field in dataclasses.fields(page.rows)},
    }


def _policy(scripts: list[str]) -> str:
    """Runs these scripts and no others, and opens no connection."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, of the version that the specifications are written in."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


@cache
def _file(name: str) -> str:
    return resources.files("raymerge.html_report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment
