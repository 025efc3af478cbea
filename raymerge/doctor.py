"""What would keep a sweep from running, found before it runs, on this machine or on every node of a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymerge.driver import reference_cells
from raymerge.errors import SuiteError
from raymerge.methods import METHODS
from raymerge.model_config import model_config
from raymerge.node_check import Finding, NodeReport, inspect_node
from raymerge.plan import make_plan
from raymerge.records import Cell
from raymerge.suites import Suite, moments_dir
from raymerge.sweep_spec import SweepSpec

SLACK = 1.1
"""Of free space, over what is needed."""
RESIDENT = 4
"""Copies of an image tower that an evaluator keeps: theta_0, the weights in use, and two updates."""
GPU_BATCH = 256
"""Images per forward pass on a GPU, where the sweep does not say."""


def needed_tasks(suite: Suite, cells: Sequence[Cell]) -> dict[str, tuple[str, ...]]:
    """The tasks a sweep uses, by backbone."""
    return {cell.backbone: cell.tasks for cell in reference_cells(suite, cells)}


def moments_folder(spec: SweepSpec, suite: Suite) -> Path | None:
    """Where input moments should be; None if no method needs them."""
    if not any(METHODS.declaration(name).moments for name in spec.methods):
        return None
    return Path(spec.moments).expanduser() if spec.moments else moments_dir(suite)


def nodes(
    suite: Suite, tasks: Mapping[str, Sequence[str]], moments: Path | None, address: str | None, full: bool, debug: bool
) -> list[NodeReport]:
    """Look at this machine, or at every node of a cluster.

    Raises:
        ClusterError: there is no cluster at the address, or a node does not answer.
    """
    if address is None:
        return [inspect_node(suite, tasks, moments, full=full)]
    import ray

    from raymerge import cluster

    with cluster.connected(address, debug=debug):
        task: Any = ray.remote(num_cpus=0)(inspect_node)
        return cluster.get(
            [
                task.options(**cluster.on_node(node.node_id)).remote(suite, tasks, moments, full=full)
                for node in cluster.alive_nodes()
            ]
        )


def diagnose(spec: SweepSpec, suite: Suite, cells: Sequence[Cell], reports: Sequence[NodeReport]) -> list[Finding]:
    """Everything that is wrong, the machines' own findings first, each once."""
    found: dict[Finding, list[str]] = {}
    for report in reports:
        own = [*report.findings, *_disk(spec, suite, report), *_memory(spec, suite, cells, report)]
        for finding in own:
            found.setdefault(finding, []).append(report.host)
    several = len(reports) > 1
    findings = [
        Finding(finding.level, f"{', '.join(hosts)}: {finding.what}" if several else finding.what, finding.fix)
        for finding, hosts in found.items()
    ]
    findings += _gpus(spec, suite, reports) + _versions(reports)
    return sorted(findings, key=lambda finding: finding.level != "problem")


def _disk(spec: SweepSpec, suite: Suite, report: NodeReport) -> list[Finding]:
    plan = make_plan(spec, suite, {})
    merges: dict[str, int] = {}
    for cell in plan.cells:  # updates of single tasks are not kept
        kept = cell.max_merges - cell.num_calibrations * cell.cell.num_tasks
        merges[cell.cell.backbone] = merges.get(cell.cell.backbone, 0) + max(0, kept)
    merged = sum(count * visual_bytes(suite, backbone) for backbone, count in merges.items())
    needed = SLACK * (report.images_missing + merged)
    if report.cache_free >= needed:
        return []
    return [
        Finding(
            "problem" if report.cache_free < SLACK * report.images_missing else "warning",
            f"the cache has {_gb(report.cache_free)} free; images to come take {_gb(report.images_missing)} and merged "
            f"updates up to {_gb(merged)}",
            "Make room, or set RAYMERGE_HOME to a larger disk; the folder 'merges' of the cache may always be deleted.",
        )
    ]


def _memory(spec: SweepSpec, suite: Suite, cells: Sequence[Cell], report: NodeReport) -> list[Finding]:
    """Updates wait in Ray's object store: those of one trial have to fit, or Ray spills them to disk."""
    largest = 0
    for cell in cells:
        method = METHODS.declaration(cell.method)
        if method.kind == "zero-shot":
            continue
        count = cell.num_tasks if method.has_update_per_task or method.per_task_parameter else 1
        largest = max(largest, count * visual_bytes(suite, cell.backbone))
    if report.shm_size is None or report.shm_size >= largest:
        return []
    return [
        Finding(
            "warning",
            f"/dev/shm has {_gb(report.shm_size)}, the updates of one trial take up to {_gb(largest)}; Ray then goes "
            "through the disk, which is slower",
            "In a container, start it with a larger --shm-size.",
        )
    ]


def _gpus(spec: SweepSpec, suite: Suite, reports: Sequence[NodeReport]) -> list[Finding]:
    share = spec.resources.gpus_per_evaluator
    if not share:
        return []
    gpus = [gpu for report in reports for gpu in report.gpus]
    if not gpus:
        return [
            Finding(
                "problem",
                f"'resources.gpus_per_evaluator' is {share:g}, but no GPU was found",
                "Add --set resources.gpus_per_evaluator=0, or give --address of a cluster with GPUs.",
            )
        ]
    batch = GPU_BATCH if spec.evaluation.batch_size == "auto" else spec.evaluation.batch_size
    need = max(evaluator_bytes(suite, backbone, batch) for backbone in spec.backbones or suite.backbones)
    name, memory = min(gpus, key=lambda gpu: gpu[1])
    if memory * min(share, 1) >= need:
        return []
    return [
        Finding(
            "warning",
            f"an evaluator needs about {_gb(need)} for batches of {batch}, its share of {name} is "
            f"{_gb(int(memory * min(share, 1)))}",
            f"Add --set evaluation.batch_size={max(1, batch // 4)}, or raise resources.gpus_per_evaluator.",
        )
    ]


def _versions(reports: Sequence[NodeReport]) -> list[Finding]:
    found = []
    for package in reports[0].versions:
        by_version: dict[str, list[str]] = {}
        for report in reports:
            by_version.setdefault(report.versions.get(package, "missing"), []).append(report.host)
        if len(by_version) > 1:
            what = "; ".join(f"{version} on {', '.join(hosts)}" for version, hosts in by_version.items())
            level = "problem" if package in ("python", "ray", "raymerge") else "warning"
            found.append(Finding(level, f"{package} differs between nodes: {what}", "Install the same everywhere."))
    return found


# --- estimates -------------------------------------------------------------------------------------------------------


def visual_bytes(suite: Suite, backbone: str) -> int:
    """Float32 bytes of an image tower, by its configuration: blocks of 12 width^2, patches, positions, projection."""
    vision = _vision(suite, backbone)
    if vision is None:
        return 0
    width, layers, patch, tokens, embed_dim = vision
    return 4 * (layers * (12 * width**2 + 13 * width) + (3 * patch**2 + tokens + embed_dim + 5) * width)


def evaluator_bytes(suite: Suite, backbone: str, batch: int) -> int:
    """Memory of an evaluator in float32: the weights it keeps, and a batch with the widest activations of a block."""
    vision = _vision(suite, backbone)
    if vision is None:
        return 0
    width, _, _, tokens, _ = vision
    return RESIDENT * visual_bytes(suite, backbone) + 4 * batch * tokens * width * 16


def _vision(suite: Suite, backbone: str) -> tuple[int, int, int, int, int] | None:
    """Width, blocks, patch size, tokens and embedding size; None where the configuration is not a ViT's."""
    declared = suite.backbones[backbone]
    if declared.model is None:
        return None
    try:
        config: Mapping[str, Any] = model_config(declared)
        vision = config["vision_cfg"]
        tokens = (vision.get("image_size", 224) // vision["patch_size"]) ** 2 + 1
        return vision["width"], vision["layers"], vision["patch_size"], tokens, config["embed_dim"]
    except (KeyError, TypeError, SuiteError):
        return None


def _gb(num_bytes: int | float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
