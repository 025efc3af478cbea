"""The documentation is true: links lead somewhere, commands parse, and what is in blocks runs. See CONTRIBUTING.md."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import doc_world
import pandas as pd
import pytest
import ray.scripts.scripts
import safetensors.torch
import torch
from doc_pages import (
    COMMENTED,
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    commented_commands,
    console_commands,
    inline_code,
    links_of,
    program_calls,
    refusal,
    shell_lines,
    split_commands,
    text_of,
    unknown_options,
)
from ruamel.yaml import YAML
from some_models import assert_identical

import raymerge
from raymerge.command_page import command_page, program, walk
from raymerge.suite_file import load_suite_file
from raymerge.suite_spec import SuiteSpec
from raymerge.sweep_file import load_sweep
from raymerge.sweep_spec import SweepSpec

RAYMERGE = program()
PROGRAMS: dict[str, Any] = {"raymerge": RAYMERGE, "ray": ray.scripts.scripts.cli}
COMMANDS_PAGE = "docs/commands.md"
NOTEBOOK = "examples/demo_results.ipynb"

NOT_RUN: dict[str, tuple[str, str | None]] = {
    r"^(~/raymerge-venv/bin/)?pip |^python3 -m venv": ("network; README's line is that of .ci/run", ".ci/run"),
    r"^export ": ("sets a variable of the shell", None),
    r"^pytest$|^python -m raymerge\.command_page": ("this is how the tests, or the page they compare, are run", None),
    r"^jq ": ("jq is not a package of Python", "tests/test_status.py::test_a_log_by_hand"),
    r"^(aws|gcloud|docker|kubectl|ssh) ": ("a cloud account, Docker or other machines", "tests/test_cluster_files.py"),
    r"^(first=\$\()?sbatch ": ("SLURM", "tests/test_cluster_files.py::test_slurm_job_sweeps"),
    r"^\(umask 077 && ray get-auth-token|^(RAY_AUTH_MODE=token )?ray ": (
        "Ray's own commands; options are checked",
        "tests/test_cluster_files.py::test_ray_up_accepts_the_file",
    ),
    r"^raymerge .*--address|^RAY_AUTH_MODE=token raymerge": ("a Ray cluster", "tests/test_faults.py"),
    r"^for s in 0 1 2; do raymerge sweep": ("three sweeps", "tests/test_sweep_on_ray.py"),
    r"^raymerge \w+ .*s3://": ("an object store", "tests/test_output.py::test_s3_is_given_a_limit"),
    r"^raymerge sweep sweeps/full_grid": ("47 GB of weights", "tests/test_rehearsal.py::test_all_81_cells_of_table_1"),
    r"^raymerge report results/full_grid": ("its sweep", "tests/test_rehearsal.py::test_all_81_cells_of_table_1"),
    r"^raymerge (suite verify|data verify|data prepare|evaluate) .*--suite tall-masks": (
        "47 GB of weights, 60 GB of images",
        "tests/test_rehearsal.py::test_all_81_cells_of_table_1",
    ),
    r"^raymerge suite fetch ": ("network", "tests/test_suite_fetch.py"),
    r"^raymerge data fetch ": ("network", "tests/test_data_fetch.py"),
    r"^raymerge data (verify|prepare) USPS": ("the dataset", "tests/test_data_prepare.py"),
    r"^raymerge rehearse ": ("minutes", "tests/test_rehearsal.py::test_all_81_cells_of_table_1"),
    r"^raymerge evaluate .*--experts": (
        "Ray",
        "tests/test_cli_evaluate.py::test_experts_are_measured_stored_and_compared",
    ),
    r"^raymerge finetune ": ("minutes", "tests/test_cli_finetune.py"),
    r"^raymerge bench (merge|memory)": ("minutes", "tests/test_bench.py"),
    r"^raymerge bench evaluate": ("minutes", "tests/test_bench_evaluate.py"),
    r"^raymerge bench cluster(?! --model)": ("minutes", "tests/test_bench_cluster.py"),
    r"^raymerge bench chaos": ("minutes", "tests/test_faults.py"),
    r'^import .*pretrained="openai"': (
        "downloads weights",
        "tests/test_cli_merge.py::test_the_published_layout_loads_in_open_clip",
    ),
}
"""Lines of bash blocks, and Python blocks, that are not run: why, and the test that covers them."""

EXIT_CODES = {r"^raymerge doctor sweeps/full_grid\.yaml": 4}
"""Commands that are meant to fail here."""

LANGUAGES = {"bash", "console", "python", "sql", "yaml", ""}


def reason_not_to_run(line: str) -> str | None:
    return next((pattern for pattern in NOT_RUN if re.search(pattern, line, re.DOTALL)), None)


def exit_code(line: str) -> int:
    return next((code for pattern, code in EXIT_CODES.items() if re.search(pattern, line)), 0)


# --- commands --------------------------------------------------------------------------------------------------------


def test_the_page_of_commands_is_that_of_the_program():
    assert text_of(COMMANDS_PAGE) == command_page(), "python -m raymerge.command_page > docs/commands.md"


LEAVES = [" ".join(path) for path, command in walk(RAYMERGE) if not hasattr(command, "commands")]


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_is_told_of_beside_its_options(command):
    own_words = "\n".join(text_of(page) for page in PAGES if page != COMMANDS_PAGE)
    *group, name = command.split()
    # in lists and tables a group is named once: `raymerge suite fetch`, `verify`
    assert re.search(rf"{' '.join(group)} {name}\b|`{' '.join(group)} \w+`(, `\w+`)*,? (and )?`{name}`", own_words)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("raymerge sweep x.yaml --address auto", None),
        ("raymerge sweep --set a=b x.yaml", None),
        ("raymerge bench merge --repeats N", None),
        ("raymerge sweep x.yaml --addres auto", "--addres"),
        ("raymerge swep x.yaml", "swep"),
        ("raymerge sweep", "SPEC"),
        ("raymerge merge --method iso-c", "--output"),
        ("raymerge bench merge --repeats few", "--repeats"),
        ("raymerge report x --format pdf", "pdf"),
        ("ray up", "CLUSTER_CONFIG_FILE"),
    ],
)
def test_mistakes_in_commands_are_found(line, problem):
    name, *words = line.split()
    found = refusal(PROGRAMS[name], words)
    assert found is None if problem is None else problem in (found or "")


def is_mention(words: list[str]) -> bool:
    """Whether words of a page only name a command, or one of its options, or leave something out."""
    return "..." in words or all(re.fullmatch(r"[a-z-]+|--[a-z-]+", word) for word in words)


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED])
def test_every_command_parses(page):
    if page in COMMENTED:
        lines = [(line, True) for line in commented_commands(page)]
    else:
        lines = [(line, True) for block in blocks_of(page) for line in commands_of(block)]
        lines += [(code, False) for _, code in inline_code(page) if re.match(r"(\w+=\S+ )*(raymerge|ray) ", code)]
    for line, is_whole in lines:
        for name, *words in program_calls(line):
            if not is_whole and is_mention(words):
                assert unknown_options(PROGRAMS[name], [word for word in words if word != "..."]) == [], line
            else:
                assert refusal(PROGRAMS[name], words) is None, line


def test_every_option_in_the_text_exists():
    known = {option for _, command in walk(RAYMERGE) for parameter in command.params for option in parameter.opts}
    others = {"--help", "--slow", "--ray-client-server-port", "--dashboard-host", "--runtime-env"}
    found = {(page, code.split()[0]) for page in PAGES for _, code in inline_code(page) if code.startswith("--")}
    assert len(found) > 100
    assert sorted((page, option) for page, option in found if option.partition("=")[0] not in known | others) == []


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_every_block_says_what_it_is():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert [block.place for block in blocks if block.language not in LANGUAGES] == []
    hidden = [b.place for b in blocks if not b.language and re.search(r"^(raymerge|ray|pip|pytest) ", b.text, re.M)]
    assert hidden == [], "a command has to be in a block of bash"


def test_what_is_not_run_has_a_reason_and_a_test():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    lines = [line for block in blocks if block.language == "bash" for line in shell_lines(block.text)]
    lines += [block.text for block in blocks if block.language == "python"]
    assert set(NOT_RUN) - {reason_not_to_run(line) for line in lines} == set(), "nothing is like that any more"
    assert [pattern for pattern in EXIT_CODES if not any(re.search(pattern, line) for line in lines)] == []
    for _, test in NOT_RUN.values():
        file, _, name = (test or ".ci/run").partition("::")
        assert f"def {name}" in (ROOT / file).read_text() if name else (ROOT / file).is_file(), test


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, home = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        doc_world.patch(monkeypatch)
        monkeypatch.setenv("RAYMERGE_HOME", str(home))
        doc_world.write_world(folder)
        yield folder
    shutil.rmtree(home)  # large, and pytest would keep it


def check_merges(runner: doc_world.Runner) -> None:
    """What the command and what Python wrote, each against the other."""
    experts = [torch.load(name, weights_only=True) for name in ("cars.pt", "dtd.pt")]
    zero_shot = torch.load("zeroshot.pt", weights_only=True)
    ties = next(Path().rglob("ties.safetensors"))
    expected = raymerge.merge(zero_shot, experts, method="ties", alpha=0.6, keep=0.3)
    assert_identical(safetensors.torch.load_file(ties), expected)
    (state,) = (space["state"] for space in runner.spaces if "state" in space)
    method = "iso-c" if runner.page == "README.md" else "iso-cts"
    assert_identical(state, raymerge.merge(zero_shot, experts, method=method, alpha=1.5))
    assert Path("merged.safetensors").is_file()


def check_loading(runner: doc_world.Runner) -> None:
    check_merges(runner)
    (model,) = (space["model"] for space in runner.spaces if "model" in space)
    merged = safetensors.torch.load_file("merged/ties.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in merged.items())


def check_new_method(runner: doc_world.Runner) -> None:
    """By the formula, in float64."""
    zero_shot, *experts = (torch.load(f"{name}.pt", weights_only=True) for name in ("zeroshot", "cars", "dtd"))
    for name, found in safetensors.torch.load_file("weighted.safetensors").items():
        a, b = ((expert[name] - zero_shot[name]).double() for expert in experts)
        expected = zero_shot[name] + 0.5 * (a**3 + b**3) / (a**2 + b**2).clamp(min=1e-300)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


CHECKS: dict[str, Callable[[doc_world.Runner], None]] = {
    "README.md": check_merges,
    "docs/merge.md": check_loading,
    "docs/adding_a_method.md": check_new_method,
}
WITH_BLOCKS = [page for page in PAGES if any(block.language for block in blocks_of(page))]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_the_blocks_run(page, world, tmp_path):
    runner = doc_world.Runner(page, reason_not_to_run, exit_code)
    with doc_world.copied(world, tmp_path):
        runner.run()
        CHECKS.get(page, lambda runner: None)(runner)


def test_the_notebook_is_executed_and_runs(world, tmp_path, monkeypatch):
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code[1:])
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    (commands,) = re.findall(r"```bash\n(.*?)```", "".join(cells[0]["source"]), re.DOTALL)
    before = alt.renderers.active
    with doc_world.copied(world, tmp_path):
        doc_world.Runner(NOTEBOOK, reason_not_to_run, exit_code).run_block(Block(NOTEBOOK, 1, "bash", commands))
        monkeypatch.chdir("examples")
        space: dict[str, Any] = {}
        try:
            for number, cell in enumerate(code, start=1):
                exec(compile("".join(cell["source"]), f"{NOTEBOOK}, cell {number}", "exec"), space)
        finally:
            alt.renderers.enable(before)
            pd.reset_option("display.float_format")
    assert len(space["summary"]) == 27
    assert not space["beta"].empty


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("bash", "curl http://localhost", "is neither run nor in NOT_RUN"),
        ("bash", "raymerge plan nothing.yaml", "no such file"),
        ("bash", "raymerge plan nothing.yaml > out", "no such file"),
        ("console", "$ raymerge --version\nraymerge 0.0\n", f"raymerge {raymerge.__version__}"),
        ("python", "print(' ')", "x.md:1"),
        ("python", "import pandas\nprint(pandas.DataFrame())", "x.md:1"),
    ],
)
def test_blocks_that_are_not_true_are_found(language, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(message)):
        doc_world.Runner("x.md", reason_not_to_run, exit_code).run_block(Block("x.md", 1, language, text))


def check_yaml(text: str, path: Path) -> None:
    """A suite file, a sweep file, or part of a sweep file."""
    content = YAML(typ="safe", pure=True).load(text)
    if content is None:
        return
    if "backbones" in content and isinstance(content["backbones"], dict):
        SuiteSpec.model_validate(content)
        path.write_text(text)
        load_suite_file(path)
    elif "methods" in content:
        path.write_text(text)
        load_sweep(path)
    else:
        demo = YAML(typ="safe", pure=True).load((ROOT / "sweeps/demo.yaml").read_text())
        SweepSpec.model_validate({**demo, **content})


YAML_BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.place)
def test_yaml_is_what_its_reader_takes(block, tmp_path):
    check_yaml(block.text, tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "resources: {evaluator: 2}",
        "name: x\nsuite: demo\nnum_tasks: 8\nmethods: [iso_c]",
        "name: x\nbackbones: {b: {model: ViT-B-3}}\ntasks: [MNIST]",
    ],
)
def test_mistakes_in_yaml_are_found(text, tmp_path):
    with pytest.raises(Exception, match=r"evaluator|iso_c|ViT-B-3"):
        check_yaml(text, tmp_path / "x.yaml")


# --- links and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links_of(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors_of(str(linked.relative_to(ROOT))), f"{page}: {target}"


MADE = {block.file for page in PAGES for block in blocks_of(page)}


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED])
def test_files_that_are_named_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.~:-])((?:docs|examples|sweeps|tests|raymerge|\.ci)/[\w./-]*\w)(?![\w<])", text))
    assert [name for name in sorted(named - MADE) if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page_once():
    listed = [link for link in links_of("docs/README.md") if "/" not in link]
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert sorted(listed) == sorted(pages)
    assert "docs/README.md" in links_of("README.md")


def test_every_example_is_told_of():
    told = "".join(text_of(page) for page in PAGES)
    assert [name for name in COMMENTED if name not in told] == []


def test_what_is_said_of_the_installation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = text_of("docs/install.md")
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in page
    assert [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in page] == []
    source = "".join(path.read_text() for path in (ROOT / "raymerge").rglob("*.py"))
    kept = set(re.findall(r'cache_dir\(\) / "(\w+)"', source))
    assert kept == set(re.findall(r"`(\w+)/`", page.partition("| Below it |")[2].partition("\n\n")[0]))


# --- this file's own tools -------------------------------------------------------------------------------------------


def test_lines_and_commands():
    assert shell_lines("# all\na --x 1 \\\n    --y  # why\n\nb 'c#d' > e\n") == ["a --x 1 --y", "b 'c#d' > e"]
    assert split_commands('X=1 a "b c" | (d; e) && ray exec f "ray g h"') == [
        ["X=1", "a", "b c"],
        ["d"],
        ["e"],
        ["ray", "g", "h"],
        ["ray", "exec", "f", "ray g h"],
    ]
    assert list(program_calls('ray exec f "X=1 ~/bin/raymerge plan x; a"')) == [
        ["raymerge", "plan", "x"],
        ["ray", "exec", "f", "X=1 ~/bin/raymerge plan x; a"],
    ]
    assert console_commands("$ a b\nc\n$ d\n") == [("a b", "c\n"), ("d", "")]
    assert is_mention(["suite", "fetch"])
    assert is_mention(["merge", "...", "--alpha", "1"])
    assert not is_mention(["plan", "SPEC"])
