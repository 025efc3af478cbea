"""Which files of a published collection are needed, and where they are offered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from raymerge.errors import SuiteError
from raymerge.suite_files.hash_list import file_key
from raymerge.suites import fusionbench, tall_masks
from raymerge.suites.published import ZERO_SHOT_TASK, Kind, PublishedSuite

HUB_REPO = "nik-dim/tall_masks"
DRIVE_FOLDERS = {
    "ViT-B-32": "16xmoeMqNf1JlICqjMUEgHiH6mHn0G1f0",
    "ViT-B-16": "1dmLqIwCYPqO0qsNEuflPhC5-_QodQHDv",
    "ViT-L-14": "1QFBcz79RqXUAkEVlYOItt6VJIcf1Ppq6",
}
"""Of the older weights."""
DRIVE_MASKS = {
    "ViT-B-32": "1jpqsurrAdD5bn9i7pRBsTq4E3ayPb0YK",
    "ViT-B-16": "1jYNsdeFz6vlwIl5s4T48zeTm7FdwTSL9",
    "ViT-L-14": "16GVDMhpScmM3zeyfubjmNRFLiFKkBE7p",
}
MASKS = tuple(f"TALL_mask_{num}task.npy" for num in (8, 14, 20))

Offered = TypeVar("Offered")


@dataclass(frozen=True)
class Place:
    """A repository on the Hugging Face Hub, or a folder on Google Drive."""

    label: str
    """The repository, or the name of the folder."""
    drive_id: str | None = None


@dataclass(frozen=True)
class Wanted:
    """One file: what it is, what it is called where it comes from, and what here."""

    kind: Kind | None
    """None: no checkpoint or head."""
    backbone: str
    task: str | None
    remote: tuple[str, ...]
    """Any of these will do, the first that there is; folders and names are compared without case, from the end."""
    target: str
    """Below the weights; with a slash at its end, a folder, in which the file keeps its name."""
    optional: bool = False
    """Whether it need not be offered."""

    @property
    def key(self) -> str:
        return file_key(self.kind or self.remote[0], self.backbone, self.task)

    def choose(self, offered: Mapping[str, Offered]) -> Offered | None:
        """The one that is wanted, of what is offered by path."""
        by_case = {path.lower(): path for path in sorted(offered, reverse=True)}
        for name in self.remote:
            if path := name if name in offered else by_case.get(name.lower()):
                return offered[path]
        for name in self.remote:
            if alike := [path for path in sorted(offered) if path.lower().endswith(f"/{name}".lower())]:
                return offered[min(alike, key=len)]
        return None

    def target_for(self, path: str) -> str:
        """The path below the weights of a file that is offered under some path."""
        return self.target + path.rpartition("/")[2] if self.target.endswith("/") else self.target


def places_of(
    suite: PublishedSuite, tasks: Mapping[str, Sequence[str]], *, masks: bool
) -> list[tuple[Place, list[Wanted]]]:
    """What to fetch from where, in order.

    Args:
        tasks: by backbone.
    Raises:
        SuiteError: the suite is not one that is offered anywhere.
    """
    if suite.option == fusionbench.NAME:
        return [place for backbone, names in tasks.items() for place in _fusionbench(backbone, names)]
    if suite.option != tall_masks.NAME:
        raise SuiteError(
            f"suite '{suite.name}' is offered nowhere; tall-masks and fusionbench can be fetched. Put its files into "
            f"{suite.root}, and look what is missing with 'raymerge suite verify --suite {suite.argument}'."
        )
    places = []
    for backbone, names in tasks.items():
        if suite.profile == "paper-legacy":
            wanted = _tall_masks(backbone, names, "", backbone)
            places.append((Place(f"tall_masks checkpoints {backbone}", DRIVE_FOLDERS[backbone]), wanted))
            if masks:
                places.append((Place(f"tall_masks masks {backbone}", DRIVE_MASKS[backbone]), _masks(backbone, "")))
        else:
            folder = f"single_task/{backbone}"
            wanted = _tall_masks(backbone, names, f"{folder}/", folder)
            wanted += _masks(backbone, f"tall_masks/{backbone}/") if masks else []
            places.append((Place(HUB_REPO), wanted))
    return places


def _masks(backbone: str, folder: str) -> list[Wanted]:
    return [Wanted(None, backbone, None, (folder + name,), f"tall_masks/{backbone}/") for name in MASKS]


def _tall_masks(backbone: str, tasks: Sequence[str], folder: str, target: str) -> list[Wanted]:
    zero_shot = [f"{folder}{task}Val/nonlinear_zeroshot.pt" for task in dict.fromkeys((ZERO_SHOT_TASK, *tasks))]
    wanted = [
        Wanted(
            *("zero-shot", backbone, None, tuple(zero_shot), f"{target}/{ZERO_SHOT_TASK}Val/nonlinear_zeroshot.pt"),
            optional=True,  # it can be made of open_clip's weights
        )
    ]
    for task in tasks:
        expert, head = f"{task}Val/nonlinear_finetuned.pt", f"head_{task}Val.pt"
        wanted.append(Wanted("expert", backbone, task, (folder + expert,), f"{target}/{expert}"))
        wanted.append(Wanted("head", backbone, task, (folder + head,), f"{target}/{head}"))
    return wanted


def _fusionbench(backbone: str, tasks: Sequence[str]) -> list[tuple[Place, list[Wanted]]]:
    places = []
    for task in (None, *tasks):
        repo = fusionbench.zero_shot_repo(backbone) if task is None else fusionbench.expert_repo(backbone, task)
        kind: Kind = "zero-shot" if task is None else "expert"
        weights = Wanted(kind, backbone, task, ("model.safetensors", "pytorch_model.bin"), f"{repo}/")
        config = Wanted(None, backbone, task, ("config.json",), f"{repo}/", optional=True)
        places.append((Place(repo), [weights, config]))
    return places
