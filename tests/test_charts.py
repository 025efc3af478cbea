"""The one chart grammar: who has which look, what data becomes, and charts as files."""

import json
import resource
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
from charts_by_mark import marks

from raymerge.charts import (
    COLOURS,
    DASHES,
    FORMATS,
    MARKERS,
    check_chart_path,
    inline,
    marked_lines,
    named_scale,
    save_chart,
    themed,
    titled,
    to_html,
)
from raymerge.errors import OutputError, UsageError
from raymerge.methods import declared_methods

TITLES = [method.title for method in declared_methods().values()]


@pytest.fixture
def chart() -> alt.Chart:
    rows = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    return alt.Chart(inline(rows), width=200, height=100).mark_line().encode(x="x:Q", y="y:Q")


@pytest.mark.parametrize("channel", ["color", "strokeDash", "shape"])
def test_a_method_looks_the_same_whatever_is_beside_it(channel):
    of_all = dict(zip(TITLES, named_scale(TITLES, channel).to_dict()["range"], strict=True))
    for names in (["Iso-C"], ["Iso-CTS", "Iso-C"], ["x", "Iso-C", "Task Arithmetic"]):
        scale = named_scale(names, channel).to_dict()
        assert scale["domain"] == names
        found = dict(zip(names, scale["range"], strict=True))
        assert found["Iso-C"] == of_all["Iso-C"]
        assert found.get("Task Arithmetic", of_all["Task Arithmetic"]) == of_all["Task Arithmetic"]


def test_any_two_methods_differ_in_colour_or_dash():
    colours, dashes = (named_scale(TITLES, channel).to_dict()["range"] for channel in ("color", "strokeDash"))
    looks = [(colour, tuple(dash)) for colour, dash in zip(colours, dashes, strict=True)]
    assert len(set(looks)) == len(looks)


def test_names_that_are_no_methods_go_by_position():
    assert named_scale(["a", "b"], "color").to_dict()["range"] == list(COLOURS[:2])
    assert named_scale(["a", "b"], "shape").to_dict()["range"] == list(MARKERS[:2])
    assert named_scale(["a", "b"], "strokeDash").to_dict()["range"] == [list(dash) for dash in DASHES[:2]]


def _luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_shows_on_white_and_none_is_there_twice():
    for colour in COLOURS:
        assert 1.05 / (_luminance(colour) + 0.05) > 2
    assert all(one != other for one, other in combinations(COLOURS, 2))


def test_lines_of_names():
    rows = pd.DataFrame({"x": [0, 1, 0, 1], "y": [1, 2, 3, 4], "name": ["Iso-C", "Iso-C", "TIES", "TIES"]})
    base = alt.Chart().encode(x="x:Q", y="y:Q")
    drawn = alt.layer(*marked_lines(base, ["TIES", "Iso-C"], "name", orient="top"), data=inline(rows))
    ties, iso_c, markers = marks(drawn)
    assert (ties.kind, iso_c.kind, markers.kind) == ("line", "line", "point")
    assert ties.column("y") == [3, 4]
    assert iso_c.column("y") == [1, 2]
    scales = {
        channel: named_scale(["TIES", "Iso-C"], channel).to_dict() for channel in ("color", "strokeDash", "shape")
    }
    assert [ties.look["color"], iso_c.look["color"]] == scales["color"]["range"]
    assert [ties.look["strokeDash"], iso_c.look["strokeDash"]] == scales["strokeDash"]["range"]
    for channel in ("color", "shape"):
        assert markers.encoding[channel]["scale"] == scales[channel]
        assert markers.encoding[channel]["legend"] == {"orient": "top", "symbolSize": 90, "title": None}
    svg = ET.fromstring(FORMATS[".svg"](drawn, "t"))
    written = [element.text for element in svg.iter() if element.tag.endswith("text")]
    assert [text for text in written if text in ("TIES", "Iso-C")] == ["TIES", "Iso-C"], "one legend, in this order"


def test_lines_in_colours_of_their_own():
    drawn = alt.layer(*marked_lines(alt.Chart(), ["a", "b"], "name", colours=["#111111", "#222222"]), data=inline())
    assert [mark.look["color"] for mark in marks(drawn, "line")] == ["#111111", "#222222"]
    (markers,) = marks(drawn, "point")
    assert markers.encoding["color"]["scale"] == {"domain": ["a", "b"], "range": ["#111111", "#222222"]}


def test_rows_as_data():
    frame = pd.DataFrame(
        {
            "float": [1 / 3, np.nan],
            "int": pd.array([3, None], dtype="Int32"),
            "flag": [True, False],
            "word": ["a", None],
            "large": [123456789.0, -np.inf],
        }
    )
    one = {"float": 0.333333, "int": 3, "flag": True, "word": "a", "large": 123457000.0}
    two = {"float": None, "int": None, "flag": False, "word": None, "large": None}
    assert inline(frame).to_dict()["values"] == [one, two]
    values = inline(frame, frame[["word"]]).to_dict()["values"]
    assert values == [one, two, {"word": "a"}, {"word": None}]
    assert [type(value) for value in values[0].values()] == [float, int, bool, str, float]


def test_a_caption_is_as_wide_as_its_chart(chart):
    caption = "mean over tasks of Iso-CTS, " * 8
    title = titled(chart, "Title", caption, 280).to_dict()["title"]
    assert title["text"] == "Title"
    assert " ".join(title["subtitle"]) == caption.strip()
    assert max(map(len, title["subtitle"])) <= 280 / 5.6
    assert len(title["subtitle"]) == 5


class _Loads(HTMLParser):
    """What a page fetches; scripts are not looked into."""

    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_a_page_is_complete(chart):
    page = to_html(chart, 'a < b & "c"')
    assert "<title>a &lt; b &amp; &quot;c&quot;</title>" in page
    assert '<meta name="viewport"' in page
    parser = _Loads()
    parser.feed(page)
    assert parser.tags > {"html", "head", "script"}
    assert parser.loaded == []


def test_files_of_every_format(chart, tmp_path: Path):
    files = {ending: tmp_path / f"chart{ending}" for ending in FORMATS}
    for path in files.values():
        save_chart(chart, path, "The chart")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())
    svg = ET.fromstring(files[".svg"].read_bytes())
    width, height = (float(svg.attrib[name]) for name in ("width", "height"))
    assert width > 200
    assert height > 100
    png = files[".png"].read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == pytest.approx((2 * width, 2 * height), abs=2)
    assert files[".pdf"].read_bytes().startswith(b"%PDF-")
    assert files[".html"].read_text().startswith("<!DOCTYPE html>")
    assert json.loads(files[".json"].read_text()) == themed(chart).to_dict()


def test_endings_may_be_written_in_capitals(chart, tmp_path: Path):
    save_chart(chart, tmp_path / "CHART.JSON", "t")
    assert json.loads((tmp_path / "CHART.JSON").read_text())["mark"] == {"type": "line"}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("x.gif", UsageError, "x.gif: ends in '.gif', expected one of .html, .svg, .png, .pdf, .json."),
        ("x", UsageError, "x: has no ending, expected one of .html, .svg, .png, .pdf, .json."),
        ("folder.svg", OutputError, "folder.svg: is a folder, expected the name of a file."),
        ("no/x.svg", OutputError, "no/x.svg: there is no folder no; make it, or name another one."),
    ],
)
def test_places_that_cannot_be(name, error, message, chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.svg").mkdir()
    for do in (lambda: check_chart_path(Path(name)), lambda: save_chart(chart, Path(name), "t")):
        with pytest.raises(error) as caught:
            do()
        assert str(caught.value) == message
    assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


def test_a_file_that_finds_no_room_leaves_the_old_one(chart, tmp_path: Path):
    path = tmp_path / "x.html"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel refuses to write more, as on a full disk
    try:
        with pytest.raises(OutputError) as caught:
            save_chart(chart, path, "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"{path}: cannot be written (File too large); name another place with -o."
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]
