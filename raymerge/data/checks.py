"""What the images of a dataset have to be like before they are used: their number, their labels, their classes."""

from collections import Counter
from collections.abc import Iterator

from raymerge.data._dataset import Dataset, RawSplit, Samples
from raymerge.errors import DataError

NAMES = {"train": "training", "val": "validation", "test": "test"}


def expected_size(dataset: Dataset, split: RawSplit) -> int:
    """How many images a split is declared to have; that of "train" has not lost its validation images yet."""
    return {"train": dataset.num_train, "val": dataset.num_val, "test": dataset.num_test}[split]


def problems_of(dataset: Dataset, split: RawSplit, samples: Samples, *, declared_size: bool) -> Iterator[str]:
    """What is wrong with a split, a sentence each.

    Args:
        split: that of "val" may lack classes where its images are drawn from the training images.
        declared_size: whether it must have the size and all the classes that are known of it.
    """
    found, expected = len(samples), expected_size(dataset, split)
    what = f"{dataset.name}: its {NAMES[split]} split"
    if not found and split == "val" and dataset.num_own_val is None:
        yield f"{dataset.name}: has fewer than 10 training images, so that none is held out for validation; add some."
        return
    if not found:
        yield f"{what} has no image; get the dataset again."
        return
    if declared_size and found != expected:
        yield f"{what} has {found} images, expected {expected}; {_likely_cause(dataset, found, expected)}."
    counts = Counter(samples.labels)
    num_classes, low, high = len(dataset.classes), min(counts), max(counts)
    if low < 0 or high >= num_classes:
        example = samples.name(next(i for i, label in enumerate(samples.labels) if not 0 <= label < num_classes))
        yield (
            f"{what} has labels from {low} to {high}, expected 0 to {num_classes - 1}, such as {example}; is it "
            "another dataset?"
        )
    elif declared_size and (split != "val" or dataset.num_own_val is not None):
        missing = [name for label, name in enumerate(dataset.classes) if not counts[label]]
        if missing:
            yield (
                f"{what} has no image of class '{missing[0]}', and lacks {len(missing)} of {num_classes} classes; get "
                "the dataset again."
            )


def check_split(dataset: Dataset, split: RawSplit, samples: Samples, *, declared_size: bool) -> None:
    """Raise the first of `problems_of`.

    Raises:
        DataError: there is one.
    """
    for problem in problems_of(dataset, split, samples, declared_size=declared_size):
        raise DataError(problem)


def _likely_cause(dataset: Dataset, found: int, expected: int) -> str:
    remedy = "; a suite file with 'any_size: true' takes it as it is"
    if found == dataset.num_train + dataset.num_test:
        return "do training and test images lie together? Separate them" + remedy
    if found == dataset.num_train - dataset.num_val:
        return "were validation images taken out already? raymerge draws them itself, so put them back" + remedy
    if found > expected:
        return "is it another edition, or do images of other splits lie there too" + remedy
    return "was the download or the unpacking cut off? Get the dataset again" + remedy
