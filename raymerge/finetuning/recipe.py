"""How experts are fine-tuned: the published recipe, and what may be changed of it.

Source: `finetune.py` and `src/utils` of TALL-masks (Wang et al. 2024, arXiv:2405.07813), which made the published
checkpoints. docs/finetuning.md says where raymerge differs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raymerge.errors import UsageError
from raymerge.suites import Backbone

EPOCHS: Mapping[str, int] = {
    "Cars": 35,
    "DTD": 76,
    "DTD-leaky": 76,
    "EuroSAT": 12,
    "GTSRB": 11,
    "MNIST": 5,
    "RESISC45": 15,
    "SUN397": 14,
    "SVHN": 4,
    "CIFAR10": 6,
    "CIFAR100": 6,
    "STL10": 60,
    "Food101": 4,
    "Flowers102": 147,
    "FER2013": 10,
    "PCAM": 1,
    "OxfordIIITPet": 82,
    "RenderedSST2": 39,
    "EMNIST": 2,
    "FashionMNIST": 5,
    "KMNIST": 5,
}
"""As published, by dataset."""
BATCH_SIZE, ACCUMULATE = 128, 1
LARGE_MODEL, LARGE_BATCH_SIZE, LARGE_ACCUMULATE = "ViT-L-14", 64, 2
"""Of this one, a step's images do not fit a GPU of the time at once."""


@dataclass(frozen=True)
class FinetuneRecipe:
    """All that decides on the weights of an expert, beside the images and the weights it starts from."""

    epochs: int
    batch_size: int
    """Images of one forward pass."""
    accumulate: int
    """Forward passes of one step of the optimizer."""
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    warmup: int = 500
    """Steps."""
    gradient_norm: float = 1.0
    precision: str = "fp32"
    max_steps: int | None = None
    """An earlier end; the schedule is that of the shorter training."""
    seed: int = 0

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.accumulate

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def published_recipe(backbone: Backbone, dataset: str, task: str, changes: Mapping[str, Any]) -> FinetuneRecipe:
    """The published recipe of a task, changed.

    Args:
        changes: values of fields; None stands for the published value.
    Raises:
        UsageError: nothing is published for the dataset, and the number of epochs is not given.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if "epochs" not in given:
        if dataset not in EPOCHS:
            raise UsageError(
                f"task '{task}' ({dataset}) has no published number of epochs; give --epochs, and a --warmup shorter "
                "than the training."
            )
        given["epochs"] = EPOCHS[dataset]
    if "batch_size" not in given:
        is_large = backbone.model == LARGE_MODEL
        given["batch_size"] = LARGE_BATCH_SIZE if is_large else BATCH_SIZE
        given.setdefault("accumulate", LARGE_ACCUMULATE if is_large else ACCUMULATE)
    given.setdefault("accumulate", ACCUMULATE)
    return FinetuneRecipe(**given)
