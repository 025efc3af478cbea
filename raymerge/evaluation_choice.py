"""What `auto` stands for in the evaluation of one sweep: decided once, before any trial, and kept with its results.

Precision: the fastest in which the zero-shot models answer as in fp32 on nearly all of a sample of validation images.
The zero-shot model is the least sure of its answers, and so the strictest judge. Batch size: see `batch_size.py`.
torch is imported by what measures alone: whoever continues a sweep only reads what was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raymerge.suites import Suite
from raymerge.sweep_spec import EvaluationSettings

if TYPE_CHECKING:
    import torch

    from raymerge.agreement import Agreement

MIN_AGREEMENT = 0.995
"""Share of a backbone's sample on which a precision has to give the answers of fp32."""
MIN_GAIN = 1.1
"""A precision that is not so many times as fast as fp32 is not worth any disagreement, and its gain may be noise."""
SAMPLE_IMAGES = 64
"""Per task."""
HALF = {"cuda": ("bf16", "fp16"), "cpu": ("bf16",)}
"""Candidates by kind of device. On a CPU fp16 was never faster than fp32 (docs/performance.md)."""


@dataclass(frozen=True)
class Judged:
    """One precision on the samples of all backbones."""

    precision: str
    agreement: float
    """Of the backbone for which it is lowest."""
    gain: float
    """Time in fp32 over time in this precision."""

    @property
    def is_fit(self) -> bool:
        return self.agreement >= MIN_AGREEMENT and self.gain >= MIN_GAIN


@dataclass(frozen=True)
class EvaluationChoice:
    """Precision and batch sizes of a sweep, with nothing left to decide."""

    precision: str
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    """By backbone, where they were measured; elsewhere evaluators go by the rule, or by the sweep file."""
    judged: tuple[Judged, ...] = ()
    """The precisions that were compared with fp32."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "EvaluationChoice":
        return cls(value["precision"], dict(value["batch_sizes"]), tuple(Judged(**item) for item in value["judged"]))

    def __str__(self) -> str:
        text = self.precision
        if self.judged:
            tried = (
                f"{j.precision} {j.gain:.1f} times as fast, {100 * j.agreement:.2f} % agreement" for j in self.judged
            )
            text += f" ({'; '.join(tried)})"
        sizes = ", ".join(f"{backbone} {size}" for backbone, size in self.batch_sizes.items())
        return f"precision {text}" + (f", batches of {sizes}" if sizes else "")


def common_choice(choices: Sequence[EvaluationChoice]) -> EvaluationChoice:
    """One choice for several kinds of device, at least one: all evaluators of a sweep compute alike.

    A precision counts where every kind chose it, and a batch has to fit everywhere.
    """
    first, *others = choices
    if any(other.precision != first.precision for other in others):
        judged = min((choice.judged for choice in choices if choice.precision == "fp32"), key=len, default=())
        first = EvaluationChoice("fp32", first.batch_sizes, judged)
    sizes = {
        name: min(choice.batch_sizes.get(name, size) for choice in choices) for name, size in first.batch_sizes.items()
    }
    return EvaluationChoice(first.precision, sizes, first.judged)


def choose(
    suite: Suite,
    settings: EvaluationSettings,
    tasks: Mapping[str, Sequence[str]],
    *,
    device: "torch.device",
    report: Callable[[str, float], None] = lambda what, share: None,
) -> EvaluationChoice:
    """Decide whatever `settings` leaves to auto, for evaluators on devices like this one.

    Args:
        tasks: the tasks in use, by backbone.
    """
    precision, judged = settings.precision, ()
    if precision == "auto":
        from raymerge.agreement import measure_agreement

        found = [
            measure_agreement(
                suite,
                backbone,
                names,
                HALF[device.type],
                device=device,
                batch_size=None if settings.batch_size == "auto" else settings.batch_size,
                max_images=min(SAMPLE_IMAGES, settings.max_images or SAMPLE_IMAGES),
                report=report,
            )
            for backbone, names in tasks.items()
        ]
        judged = judge(found)
        precision = fastest_fit(judged)
    batch_sizes = {}
    if settings.batch_size == "auto" and device.type == "cuda":
        batch_sizes = {backbone: _measured(suite, backbone, precision, device) for backbone in tasks}
    return EvaluationChoice(precision, batch_sizes, judged)


def judge(found: "Sequence[Sequence[Agreement]]") -> tuple[Judged, ...]:
    """What the samples say of every precision.

    Args:
        found: of every backbone.
    """
    judged = []
    for precision in dict.fromkeys(row.precision for rows in found for row in rows):
        of_backbones = [[row for row in rows if row.precision == precision] for rows in found]
        agreement = min(sum(row.same for row in rows) / sum(row.images for row in rows) for rows in of_backbones)
        reference_s = sum(row.reference_seconds for rows in of_backbones for row in rows)
        seconds = sum(row.seconds for rows in of_backbones for row in rows)
        judged.append(Judged(precision, agreement, reference_s / seconds))
    return tuple(judged)


def fastest_fit(judged: Sequence[Judged]) -> str:
    """The fastest precision that is fit to be used; fp32 where none is."""
    fit = [row for row in judged if row.is_fit]
    return max(fit, key=lambda row: row.gain).precision if fit else "fp32"


def _measured(suite: Suite, backbone: str, precision: str, device: "torch.device") -> int:
    from raymerge.backbones import build_image_encoder
    from raymerge.checkpoints import open_checkpoint
    from raymerge.evaluation import Evaluator

    zero_shot, encoder = open_checkpoint(suite.zero_shot_path(backbone)), suite.backbones[backbone]
    return Evaluator(
        build_image_encoder(encoder, zero_shot.shapes),
        zero_shot,
        mean=encoder.mean,
        std=encoder.std,
        device=device,
        precision=precision,
    ).batch_size
