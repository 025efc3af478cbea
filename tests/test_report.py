import csv
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import pandas as pd
import pytest
from rich.console import Console

from raymerge import renderers
from raymerge.errors import UsageError
from raymerge.output import open_output
from raymerge.records import Cell, Point, ServiceStats, TaskReference, TaskScore, TrialRecord
from raymerge.renderers import RENDERERS, latex, markdown, terminal, to_csv, to_json
from raymerge.report import Entry, Table1, alpha_ranges, parameter_ranges, percent, range_end, tenths
from raymerge.results import ResultsWriter, RunContext, write_summary
from raymerge.summary import SummaryRow, summarise

CONTEXT = RunContext("grid", "c0ffee", "toy", "full", 0, "f1f1", "normalized_accuracy", "fp32")
NUMBERS = ("val_accuracy", "val_normalized_accuracy", "test_accuracy", "test_normalized_accuracy")


def row(method, accuracy=None, normalized=None, *, backbone="ViT-B-32", num_tasks=8, alpha=None, **changes):
    return {
        "method": method,
        "backbone": backbone,
        "num_tasks": num_tasks,
        "status": "finished",
        "error": None,
        "alpha": alpha,
        "val_accuracy": None,
        "val_normalized_accuracy": None,
        "test_accuracy": accuracy,
        "test_normalized_accuracy": normalized,
        "published_accuracy": None,
        "published_normalized_accuracy": None,
        **changes,
    }


def table(*rows, **arguments) -> Table1:
    return Table1.from_summary(pd.DataFrame(rows), **arguments)


def test_a_parameter_that_is_a_word_is_shown_as_it_is():
    found = table(row("scale-svd", 0.7, 0.8, alpha=0.4, sparsity=0.1, apply="merged", prune_level="row"))
    assert found.chosen["scale-svd"] == ("alpha", "apply", "prune_level", "sparsity")
    assert "0.4, merged, row, 0.1" in markdown(found)
    (cell,) = json.loads(to_json(found))["cells"]
    assert cell["params"] == {"apply": "merged", "prune_level": "row", "sparsity": 0.1}


@pytest.fixture
def small() -> Table1:
    return table(
        row("zero-shot", 0.483, 0.52, alpha=0.0, published_accuracy=0.483),
        row("ties", 0.7512, 0.81, alpha=1.0, keep=0.2),
        row("consensus-ta", 0.75, 0.8, alpha=0.5, mask_lambda=[0.2, 0.6], min_tasks=2.0),
        row("iso-cts", 0.8615, 0.9281, alpha=1.5, common_space_fraction=0.8, published_accuracy=0.862),
        row("zero-shot", 0.561, num_tasks=20, alpha=0.0),
        row("ties", num_tasks=20, alpha=1 / 3, keep=0.2, status="failed", error="out of memory | 50 %"),
        row("consensus-ta", num_tasks=20, status="missing", error="no trial has finished"),
        row("iso-cts", 0.7805, 0.855, num_tasks=20, alpha=1.1, common_space_fraction=0.9),
        methods=["zero-shot", "iso-cts", "ties", "consensus-ta"],
        alpha_ranges={"ties": (0.1, 1.0, 0.1), "iso-cts": (0.1, 3.0, 0.1)},
    )


MARKDOWN = """\
Test accuracy in percent, averaged over tasks, and in parentheses relative to the experts. Best and second best \
merging method of a column: bold and underlined.

| Method | ViT-B-32, 8 tasks | ViT-B-32, 20 tasks |
| --- | ---: | ---: |
| Zero-shot | 48.3 (52.0) | 56.1 |
| Iso-CTS | **86.2** (92.8) | **78.0** (85.5) |
| TIES | <u>75.1</u> (81.0) | failed (1) |
| Consensus TA | 75.0 (80.0) | – (2) |

Chosen on validation:

| Method | ViT-B-32, 8 tasks | ViT-B-32, 20 tasks |
| --- | ---: | ---: |
| Iso-CTS (α, common_space_fraction) | 1.5, 0.8 | 1.1, 0.9 |
| TIES (α, keep) | 1, 0.2 | 0.333, 0.2 |
| Consensus TA (α, mask_lambda, min_tasks) | 0.5, 0.2 to 0.6, 2 | – |

- (1) out of memory \\| 50 %
- (2) no trial has finished

> **Warning:** ties on ViT-B-32, 8 tasks: alpha 1 is the upper end of its search range (0.1 to 1); widen \
methods.ties.alpha.
"""

LATEX = r"""% Test accuracy in percent, averaged over tasks, and in parentheses relative to the experts. """ + (
    r"""Best and second best merging method of a column: bold and underlined.
% Needs \usepackage{booktabs}.
\begin{tabular}{lrr}
\toprule
& \multicolumn{2}{c}{ViT-B-32} \\
\cmidrule(lr){2-3}
Method & 8 tasks & 20 tasks \\
\midrule
Zero-shot & 48.3$_{(52.0)}$ & 56.1 \\
Iso-CTS & \textbf{86.2}$_{(92.8)}$ & \textbf{78.0}$_{(85.5)}$ \\
TIES & \underline{75.1}$_{(81.0)}$ & failed (1) \\
Consensus TA & 75.0$_{(80.0)}$ & -- (2) \\
\bottomrule
\end{tabular}

% Chosen on validation.
\begin{tabular}{lrr}
\toprule
& \multicolumn{2}{c}{ViT-B-32} \\
\cmidrule(lr){2-3}
Method & 8 tasks & 20 tasks \\
\midrule
Iso-CTS ($\alpha$, common\_space\_fraction) & 1.5, 0.8 & 1.1, 0.9 \\
TIES ($\alpha$, keep) & 1, 0.2 & 0.333, 0.2 \\
Consensus TA ($\alpha$, mask\_lambda, min\_tasks) & 0.5, 0.2 to 0.6, 2 & -- \\
\bottomrule
\end{tabular}
% (1) out of memory | 50 %
% (2) no trial has finished
% Warning: ties on ViT-B-32, 8 tasks: alpha 1 is the upper end of its search range (0.1 to 1); """
    r"""widen methods.ties.alpha.
"""
)

TERMINAL = """\
Test accuracy in percent, averaged over tasks, and in parentheses relative to the experts.
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━┓
┃                           ┃           ViT-B-32 ┃    ViT-B-32 ┃
┃ Method                    ┃            8 tasks ┃    20 tasks ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━┩
│ Zero-shot                 │        48.3 (52.0) │        56.1 │
│ Iso-CTS                   │        86.2 (92.8) │ 78.0 (85.5) │
│ α, common_space_fraction  │           1.5, 0.8 │    1.1, 0.9 │
│ TIES                      │        75.1 (81.0) │  failed (1) │
│ α, keep                   │             1, 0.2 │  0.333, 0.2 │
│ Consensus TA              │        75.0 (80.0) │       – (2) │
│ α, mask_lambda, min_tasks │ 0.5, 0.2 to 0.6, 2 │           – │
└───────────────────────────┴────────────────────┴─────────────┘
(1) out of memory | 50 %
(2) no trial has finished
Warning: ties on ViT-B-32, 8 tasks: alpha 1 is the upper end of its search range (0.1 to 1); widen methods.ties.alpha.
"""


def test_markdown(small):
    assert markdown(small) == MARKDOWN


def test_latex(small):
    assert latex(small) == LATEX


def render(renderable, **options) -> str:
    console = Console(width=160, file=io.StringIO(), **options)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal(small):
    lines = [line.rstrip() for line in render(terminal(small)).splitlines()]
    assert "\n".join(lines) + "\n" == TERMINAL


def test_terminal_emphasis(small):
    text = render(terminal(small), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1m86.2\x1b[0m (92.8)" in text
    assert "\x1b[4m75.1\x1b[0m (81.0)" in text
    assert "\x1b[1m75.0" not in text


@pytest.mark.parametrize(
    ("render_text", "expected"),
    [
        (lambda t: markdown(t, published=True), "**86.2** (92.8) [86.2]"),
        (lambda t: latex(t, published=True), r"\textbf{86.2}$_{(92.8)}$ [86.2]"),
        (lambda t: render(terminal(t, published=True)), "86.2 (92.8) [86.2]"),
    ],
    ids=["markdown", "latex", "terminal"],
)
def test_published_figures_on_request(small, render_text, expected):
    text = render_text(small)
    assert expected in text
    assert "In brackets: the published accuracy." in text
    assert text.count("[48.3]") == 1
    assert "In brackets" not in markdown(small)


def test_a_published_figure_stands_beside_a_failure():
    failed = table(row("ties", status="failed", error="boom", published_accuracy=0.75))
    assert "| TIES | failed (1) [75.0] |" in markdown(failed, published=True)
    assert r"TIES & failed (1) [75.0] \\" in latex(failed, published=True)


def test_csv_keeps_full_precision(small):
    rows = {(r["method"], r["num_tasks"]): r for r in csv.DictReader(io.StringIO(to_csv(small)))}
    assert len(rows) == 8
    cts = rows["iso-cts", "8"]
    assert (cts["accuracy"], cts["normalized_accuracy"], cts["published_accuracy"]) == ("0.8615", "0.9281", "0.862")
    assert cts["common_space_fraction"] == "0.8"
    assert rows["ties", "20"]["alpha"] == repr(1 / 3)
    assert rows["ties", "20"]["error"] == "out of memory | 50 %"
    assert rows["ties", "20"]["accuracy"] == ""
    assert rows["consensus-ta", "8"]["mask_lambda"] == "0.2 0.6"
    frame = pd.read_csv(io.StringIO(to_csv(small)))
    assert frame["accuracy"].notna().sum() == 6


def test_json_keeps_full_precision(small):
    value = json.loads(to_json(small))
    assert value["methods"][1] == {"name": "iso-cts", "title": "Iso-CTS"}
    assert value["columns"] == [
        {"backbone": "ViT-B-32", "num_tasks": 8},
        {"backbone": "ViT-B-32", "num_tasks": 20},
    ]
    cells = {(c["method"], c["num_tasks"]): c for c in value["cells"]}
    assert cells["ties", 20]["alpha"] == 1 / 3
    assert cells["ties", 20]["accuracy"] is None
    assert cells["consensus-ta", 8]["params"] == {"mask_lambda": [0.2, 0.6], "min_tasks": 2.0}
    assert [cells[m, 8]["rank"] for m in ("zero-shot", "iso-cts", "ties", "consensus-ta")] == [
        None,
        "best",
        "second",
        None,
    ]
    assert value["warnings"] == list(small.warnings)


def test_renderers_by_name(small):
    assert {name: render(small) for name, render in RENDERERS.items()} == {
        "markdown": markdown(small),
        "latex": latex(small),
        "csv": to_csv(small),
        "json": to_json(small),
    }


# --- ranks -------------------------------------------------------------------------------------------------------


def ranks(**accuracies):
    rows = [row(name.replace("_", "-"), accuracy) for name, accuracy in accuracies.items()]
    return table(*rows).ranks(("ViT-B-32", 8))


def test_reference_models_never_win():
    assert ranks(zero_shot=0.99, fine_tuned=0.995, ties=0.5, iso_c=0.6) == {"iso-c": "best", "ties": "second"}


def test_ties_share_a_rank():
    assert ranks(ties=0.6, iso_c=0.6, tsv_m=0.5, iso_cts=0.5, task_arithmetic=0.4) == {
        "ties": "best",
        "iso-c": "best",
        "tsv-m": "second",
        "iso-cts": "second",
    }


def test_ties_are_what_is_printed():
    assert ranks(ties=0.60012, iso_c=0.59988, tsv_m=0.5994) == {"ties": "best", "iso-c": "best", "tsv-m": "second"}
    assert (percent(0.60012), percent(0.59988), percent(0.5994)) == ("60.0", "60.0", "59.9")


def test_one_method_alone_is_best():
    assert ranks(ties=0.1) == {"ties": "best"}
    assert ranks(zero_shot=0.1) == {}


def test_ties_in_markdown_and_latex():
    tied = table(row("ties", 0.6), row("iso-c", 0.6), row("tsv-m", 0.5), row("iso-cts", 0.5))
    assert markdown(tied).count("**60.0**") == markdown(tied).count("<u>50.0</u>") == 2
    assert latex(tied).count(r"\textbf{60.0}") == latex(tied).count(r"\underline{50.0}") == 2


# --- order, gaps, escapes ----------------------------------------------------------------------------------------


def test_default_order_and_columns():
    rows = [row(m, 0.5, backbone=b, num_tasks=n) for b, n in (("Z", 14), ("Z", 8), ("A", 8)) for m in ("iso-c", "ties")]
    found = table(*rows, row("my-method", 0.5, backbone="Z"))
    assert found.methods == ("ties", "iso-c", "my-method")
    assert found.columns == (("Z", 8), ("Z", 14), ("A", 8))
    assert found.title("my-method") == "my-method"


def test_a_combination_without_a_row_was_not_run():
    found = table(row("ties", 0.5), row("iso-c", 0.5, num_tasks=14))
    entry = found.entry("ties", ("ViT-B-32", 14))
    assert isinstance(entry, Entry)
    assert (entry.status, entry.error, entry.accuracy) == ("missing", "not run", None)
    assert "| TIES | **50.0** | – (1) |" in markdown(found)
    assert "- (1) not run" in markdown(found)


def test_equal_reasons_share_a_note():
    rows = [row(m, status="failed", error=e) for m, e in (("ties", "boom"), ("iso-c", "bang"), ("tsv-m", "boom"))]
    found = table(*rows, methods=["ties", "iso-c", "tsv-m"])
    assert found.notes == {"boom": 1, "bang": 2}
    assert markdown(found).count("failed (1)") == 2


def test_latex_escapes():
    name = r"a_b&c%d$e#f{g}h~i^j\k"
    text = latex(table(row(name, 0.5, backbone="x_y", alpha=1.0)))
    assert r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k & \textbf{50.0}" in text
    assert r"\multicolumn{1}{c}{x\_y}" in text


def test_a_reason_of_several_lines_stays_a_comment_and_one_row():
    found = table(row("ties", status="failed", error="first\nsecond | third"))
    assert "% (1) first second | third\n" in latex(found)
    assert "- (1) first second \\| third\n" in markdown(found)


def test_one_value_in_a_list_is_printed_as_a_number():
    assert "| Consensus TA (α, mask_lambda) | 0.5, 0.4 |" in markdown(
        table(row("consensus-ta", 0.5, alpha=0.5, mask_lambda=[0.4]))
    )
    assert renderers.value_text((0.3, 0.3)) == "0.3"


# --- edges of the search range -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "side"), [(0.1, "lower"), (3.0, "upper"), (0.2, None), (2.9, None), (0.1 + 1e-12, "lower"), (1.0, None)]
)
def test_edge_warnings(alpha, side):
    warnings = table(row("iso-c", 0.5, alpha=alpha), alpha_ranges={"iso-c": (0.1, 3.0, 0.1)}).warnings
    assert warnings == (
        (
            f"iso-c on ViT-B-32, 8 tasks: alpha {alpha:.4g} is the {side} end of its search range (0.1 to 3); "
            "widen methods.iso-c.alpha.",
        )
        if side
        else ()
    )


def test_no_range_no_warning():
    assert table(row("iso-c", 0.5, alpha=3.0)).warnings == ()
    assert table(row("iso-c", None, alpha=None), alpha_ranges={"iso-c": (0.1, 3.0, 0.1)}).warnings == ()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"low": 0.5, "high": 2.0, "step": 0.25}, (0.5, 2.0, 0.25)),
        ({"low": 0.5, "high": 2.1, "step": 0.25}, (0.5, 2.0, 0.25)),  # 2.1 is not on the grid
        ({"low": 0.5, "high": 2.0, "step": None}, (0.5, 2.0, 0.0)),
        ({"start": 0.0, "stop": 1.0, "num": 4}, (0.25, 1.0, 0.25)),  # zero is left out
        ({"start": 1.0, "stop": 2.0, "num": 5}, (1.0, 2.0, 0.25)),
        ([0.5, 2.0, 1.0], (0.5, 2.0, 0.0)),
        ([0.5], None),
        (1.0, None),
        (None, (0.1, 3.0, 0.1)),  # as declared
    ],
)
def test_alpha_ranges_of_a_sweep(setting, expected):
    found = alpha_ranges({"methods": {"iso-c": {"alpha": setting}, "zero-shot": {}, "unknown": {}}})
    assert set(found) == ({"iso-c"} if expected else set())
    if expected:
        assert found["iso-c"] == pytest.approx(expected)


def test_methods_as_a_list():
    assert set(alpha_ranges({"methods": ["iso-c", "zero-shot"]})) == {"iso-c"}
    assert alpha_ranges({}) == {}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, (0.1, 0.9, 0.1)),  # as declared
        ([0.2, 0.5, 0.8], (0.2, 0.8, 0.0)),
        ({"low": 0.5, "high": 1.0, "step": 0.2}, (0.5, 0.9, 0.2)),
        (0.8, None),
        ([0.2, 0.8], None),
    ],
)
def test_parameter_ranges_of_a_sweep(setting, expected):
    """Of searched parameters alone: those of TIES and Consensus TA are set by hand or by every task."""
    methods = {"iso-cts": {"common_space_fraction": setting}, "ties": {"keep": [0.1, 0.2, 0.3]}, "consensus-ta": {}}
    found = parameter_ranges({"methods": methods})
    assert set(found) == ({("iso-cts", "common_space_fraction")} if expected else set())
    if expected:
        assert found["iso-cts", "common_space_fraction"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "searched", "side"),
    [
        (0.1, (0.1, 0.9, 0.1), "lower"),
        (0.14, (0.1, 0.9, 0.1), "lower"),
        (0.16, (0.1, 0.9, 0.1), None),
        (0.86, (0.1, 0.9, 0.1), "upper"),
        (0.2, (0.2, 0.8, 0.0), "lower"),
        (0.201, (0.2, 0.8, 0.0), None),
        (0.8, (0.2, 0.8, 0.0), "upper"),
    ],
)
def test_ends_of_a_range(value, searched, side):
    assert range_end(value, searched) == side


def test_tenths_are_those_that_are_printed():
    assert [tenths(fraction) for fraction in (0.8625, 0.86249, 0.86251, 1.0, 0.0)] == [862, 862, 863, 1000, 0]


# --- from an output folder ---------------------------------------------------------------------------------------

TASKS = ("A", "B")
SPEC = {"methods": {"iso-c": {"alpha": {"low": 0.5, "high": 1.0, "step": 0.5}}, "ties": {}, "tsv-m": {}}}


@pytest.fixture
def sweep(tmp_path):
    with open_output(tmp_path, sweep="grid", spec=SPEC, spec_hash="c0ffee") as output:
        output.begin("f1f1")
        writer = ResultsWriter(tmp_path, CONTEXT)
        for method, best in (("ties", 0.5), ("iso-c", 1.0)):
            for alpha in (0.5, 1.0):
                for split in ("val", "test"):
                    correct = 6 if alpha == best else 5
                    writer.append(
                        TrialRecord(
                            trial_id=f"{method}{alpha}{split}",
                            cell=Cell("ViT-X", TASKS, method),
                            point=Point(alpha),
                            stage="search" if split == "val" else "test",
                            split=split,
                            status="finished",
                            scores=tuple(TaskScore(task, correct, 10) for task in TASKS),
                            references={task: TaskReference(0.8, 0.1) for task in TASKS},
                        )
                    )
    return tmp_path


def test_an_interrupted_sweep_has_a_table(sweep):
    found = Table1.from_output(sweep)
    assert found.methods == ("iso-c", "ties"), "the order of the sweep file"
    assert "| Iso-C | **60.0** (75.0) |\n| TIES | **60.0** (75.0) |" in markdown(found)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("iso-c on ViT-X, 2 tasks: alpha 1 is the upper end")


def test_a_finished_sweep_is_read_from_its_summary(sweep):
    rows: list[SummaryRow] = summarise([], [Cell("ViT-X", TASKS, "tsv-m")], "accuracy")
    write_summary(sweep, [replace(rows[0], status="finished", error=None, test_accuracy=0.25)], CONTEXT)
    found = Table1.from_output(sweep)
    assert found.methods == ("tsv-m",)
    assert found.entry("tsv-m", ("ViT-X", 2)).accuracy == 0.25


def test_how_busy_the_evaluators_were(sweep):
    line = "evaluators were busy 75.0 % of the time (1 run, 2 evaluators)"
    assert Table1.from_output(sweep).remarks == ()
    with open_output(sweep, sweep="grid", spec=SPEC, spec_hash="c0ffee") as output:
        output.start_run()  # as if it had been killed
    assert Table1.from_output(sweep).remarks == ()
    with open_output(sweep, sweep="grid", spec=SPEC, spec_hash="c0ffee") as output:
        output.start_run()
        output.end_run("finished", ServiceStats(num_evaluators=2, images=10, busy_s=7.5, present_s=10.0))
    table = Table1.from_output(sweep)
    assert table.remarks == (line,)
    assert f"\n- {line}\n" in markdown(table)
    printed = io.StringIO()
    Console(file=printed, width=200).print(terminal(table))
    assert f"\n{line}\n" in "\n".join(text.rstrip() for text in printed.getvalue().split("\n"))
    assert line in "".join(ElementTree.fromstring(renderers.svg(table)).itertext()).replace("\xa0", " ")


def test_no_results_no_table(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        Table1.from_output(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no results here"):
        Table1.from_output(tmp_path)


def test_a_report_is_fast_and_needs_no_torch(sweep):
    code = (
        "import sys\n"
        "from raymerge.renderers import markdown\n"
        "from raymerge.report import Table1\n"
        "markdown(Table1.from_output(sys.argv[1]))\n"
        "print([name for name in ('torch', 'ray', 'optuna') if name in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, sweep], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - started < 60  # 1 s alone; the machine may be busy


def test_svg_shows_what_the_terminal_shows_and_loads_nothing(small: Table1) -> None:
    picture = renderers.svg(small)
    root = ElementTree.fromstring(picture)
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert all(small.title(method) in text for method in small.methods)
    assert "url(" not in picture.replace("url(#", "")
    assert "@font-face" not in picture
