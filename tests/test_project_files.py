"""The files around the package: what they may not mention, and that they fit what reads them."""

import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from raymerge import __version__

ROOT = Path(__file__).parent.parent

# put together here, so that this file passes its own test
PRIVATE_PATH = re.compile(r"(?<![\w.~])/" + r"work\b" + r"|\.\./" + "shared")


def project_files() -> list[Path]:
    """Every file that is or could be committed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode == 0:
        names = {ROOT / name for name in listed.stdout.decode().split("\0") if name}
    else:  # an unpacked archive
        names = {path for path in ROOT.rglob("*") if not {".venv", "venv", "__pycache__"} & {*path.parts}}
    return sorted(path for path in names if path.is_file())


def load_yaml(path: Path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "is_private"),
    [
        ("see /" + "work/x", True),
        ("'/" + "work'", True),
        ("../" + "shared/x", True),
        ("/" + "worker", False),
        ("python/" + "work/x", False),
        ("/" + "workflows", False),
    ],
)
def test_private_paths_are_recognised(text, is_private):
    assert bool(PRIVATE_PATH.search(text)) == is_private


def test_no_file_names_a_place_outside_the_project():
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in PRIVATE_PATH.finditer(text)]
    assert found == []


def test_citation_names_this_version():
    citation = load_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == [
        "Marczak",
        "Magistri",
        "Cygert",
        "Twardowski",
        "Bagdanov",
        "van de Weijer",
    ]


def test_continuous_integration_can_be_run():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
