"""A plan as terminal text."""

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from raymerge.methods import declared_methods
from raymerge.plan import CellPlan, Plan
from raymerge.suites import Suite
from raymerge.suites.published import PublishedSuite


def plan_view(plan: Plan, suite: Suite, output_dir: str) -> RenderableType:
    """One line per cell, then totals. Returns a rich renderable; the caller prints it."""
    declared = declared_methods()
    grid = Table()
    for title in ("Backbone", "Tasks", "Method", "Trials", "Images", "Done"):
        grid.add_column(title, justify="right" if title in ("Tasks", "Trials", "Images") else "left", no_wrap=True)
    columns = [(planned.cell.backbone, planned.cell.num_tasks) for planned in plan.cells]
    for i, (planned, (backbone, num_tasks)) in enumerate(zip(plan.cells, columns, strict=True)):
        is_first = i == 0 or columns[i - 1] != columns[i]
        grid.add_row(
            backbone if is_first else "",
            str(num_tasks) if is_first else "",
            declared[planned.cell.method].title,
            f"{planned.max_trials + planned.num_calibrations:,}",
            f"{planned.max_images:,}",
            _done(planned),
            end_section=columns[i + 1 : i + 2] != columns[i : i + 1],
        )
    return Group(grid, *(Text(line) for line in _totals(plan, suite, output_dir)))


def _done(planned: CellPlan) -> str:
    if planned.is_tested:
        return "all"
    parts = [(planned.finished, "finished"), (planned.pruned, "pruned"), (planned.failed, "failed")]
    return ", ".join(f"{count} {name}" for count, name in parts if count)


def _totals(plan: Plan, suite: Suite, output_dir: str) -> list[str]:
    trials = plan.max_trials + sum(planned.num_calibrations for planned in plan.cells)
    references = sum(reference.images for reference in plan.references)
    lines = [
        f"At most {_count(len(plan.cells), 'cell')}, {_count(trials, 'trial')}, {_count(plan.max_merges, 'merge')} and "
        f"{_count(plan.max_images, 'image')}, of which {references:,} for the zero-shot model and the experts."
    ]
    if plan.max_images_left < plan.max_images:
        lines.append(
            f"Already done in {output_dir}: {plan.num_cells_done} of {_count(len(plan.cells), 'cell')}; "
            f"at most {_count(plan.max_images_left, 'image')} are left."
        )
    else:
        lines.append(f"Nothing is done yet; results go to {output_dir}.")
    size = "not on disk yet" if plan.checkpoint_bytes is None else decimal(plan.checkpoint_bytes)
    lines.append(f"Reads {_count(plan.num_checkpoints, 'checkpoint')}, {size}.")
    if isinstance(suite, PublishedSuite):
        lines.append(f"Suite {suite.name} ({suite.profile}): weights in {suite.root}, datasets in {suite.data}.")
    else:
        prepared = f"prepared in {suite.root}" if suite.is_prepared else "not prepared yet, which the sweep does first"
        lines.append(f"Suite {suite.name} ({suite.profile}, seed {suite.seed}): {prepared}.")
    return lines


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
