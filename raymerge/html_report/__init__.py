"""A sweep as one page that needs nothing else: no network, no server, no other file.

    contents.py         what is read of a folder of results
    page.py             what the page says; its tables come from table1.py and plain_tables.py
    figures.py          the charts with their words; readings.py says in a sentence what they show
    rows.py             the rows behind the charts, for charts and their tables alike
    drawings.py         the charts as specifications, without data
    template.html.j2    the page, written by render.py; style.css, tables.js and figures.js go into it

Everything from results is untrusted text: the template escapes it, charts take it as data and never as expressions, and
the page's Content-Security-Policy runs the scripts it was written with and no others.
"""

from pathlib import Path

from raymerge.errors import UsageError
from raymerge.folder import Location, is_uri


def check_page_path(path: str | Path) -> None:
    """Whether a page can be saved there, before anything is read.

    Raises:
        UsageError: it is a URI, or does not end in .html.
        OutputError: the folder is missing, or the path is one.
    """
    from raymerge.charts import check_chart_path

    if is_uri(str(path)):
        raise UsageError(f"{path}: is a URI, expected a local file; copy the page there once it is written.")
    if (ending := Path(path).suffix).lower() != ".html":
        found = f"ends in '{ending}'" if ending else "has no ending"
        raise UsageError(f"{path}: {found}, expected the name of a page, such as report.html.")
    check_chart_path(Path(path))


def save_page(output_dir: Location, path: str | Path) -> None:
    """Write the page of a sweep, finished or not; the file is whole or absent.

    Raises:
        UsageError: there are no results; or as `check_page_path`.
        OutputError: as `check_page_path`; or the file cannot be written.
    """
    check_page_path(path)
    from raymerge.charts import write_content
    from raymerge.html_report.contents import read_contents
    from raymerge.html_report.page import Page
    from raymerge.html_report.render import html_page

    write_content(Path(path), html_page(Page.of(read_contents(output_dir))).encode(), "--html")
