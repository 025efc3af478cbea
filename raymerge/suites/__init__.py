"""A suite: backbones and tasks, and where their checkpoints, heads and images are. No torch here.

`Suite` is one folder that raymerge itself wrote; `published.PublishedSuite` reads what others did. A folder of ours has
the published layout, plus `suite.json` and the image cache:

    <root>/suite.json                                        written last: its presence means complete
    <root>/<backbone>/<Task>Val/nonlinear_finetuned.pt
    <root>/<backbone>/<Task>Val/nonlinear_zeroshot.pt        at least one
    <root>/<backbone>/head_<Task>Val.pt
    <root>/images/<Task>/{val,test}.arrow
"""

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from raymerge.errors import SuiteError, did_you_mean
from raymerge.records import Split
from raymerge.whole_file import whole_file

SUITE_FORMAT = 1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of images in [0, 1], per channel: what OpenAI's CLIP was trained with."""


@dataclass(frozen=True)
class Task:
    """A dataset with its classes, in the order of the head's rows, and the size of its splits."""

    name: str
    classes: tuple[str, ...]
    images: Mapping[Split, int]
    templates: tuple[str, ...] = ()
    """Prompts with one `{}` for the class, of which a head can be built; empty in a suite that has its heads."""


@dataclass(frozen=True)
class Backbone:
    """An image encoder: its architecture, where its zero-shot weights are and how its input is normalised."""

    name: str
    zero_shot: str
    """File of the zero-shot weights, relative to the suite's root."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    model: str | Mapping[str, Any] | None = None
    """Name of an open_clip model, or a configuration as open_clip's files have it; None: the demo's."""
    quick_gelu: bool = True
    """Whether its blocks have QuickGELU, as all of OpenAI's models do."""
    pretrained: str | None = None
    """Tag of open_clip, or path of a checkpoint, that has the text tower from which heads are built."""


@dataclass(frozen=True)
class Suite:
    name: str
    profile: str
    seed: int
    root: Path
    backbones: Mapping[str, Backbone]
    tasks: tuple[Task, ...]

    def task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)

    def zero_shot_path(self, backbone: str) -> Path:
        return self.root / self.backbones[backbone].zero_shot

    def expert_path(self, backbone: str, task: str) -> Path:
        return self.root / backbone / f"{task}Val" / "nonlinear_finetuned.pt"

    def head_path(self, backbone: str, task: str) -> Path:
        return self.root / backbone / f"head_{task}Val.pt"

    def images_path(self, task: str, split: Split) -> Path:
        return self.root / "images" / task / f"{split}.arrow"

    @property
    def is_prepared(self) -> bool:
        """Whether everything is there that raymerge makes itself."""
        return (self.root / "suite.json").is_file()

    @property
    def argument(self) -> str:
        """What `--suite` and `suite:` call it, with further options where they are needed."""
        if self.name == "demo":
            return f"demo --profile {self.profile} --suite-seed {self.seed}"
        return shlex.quote(str(self.root))

    def images_remedy(self, task: str) -> str:
        """The sentence that says how to make the cached images of a task, where they are missing or damaged."""
        return "Delete the folder of the suite and prepare it again."

    def files_remedy(self, backbone: str) -> str:
        """The sentence that says what to do about checkpoints and heads that are missing; none where it makes them."""
        return ""

    def file_label(self, path: Path) -> str:
        """A name for one of its files that is the same wherever they lie."""
        return str(path.relative_to(self.root))


def cache_dir() -> Path:
    """Where prepared suites and merges are kept: $RAYMERGE_HOME, or the platform's cache directory."""
    home = os.environ.get("RAYMERGE_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("raymerge"))


def moments_path(folder: Path, backbone: str, task: str) -> Path:
    """The file of one expert's input moments in a folder of them."""
    return folder / backbone / f"{task}.safetensors"


def moments_dir(suite: Suite) -> Path:
    """Where `raymerge stats` keeps the input moments of a suite's experts."""
    return cache_dir() / "moments" / f"{suite.name}-{suite.profile}-seed{suite.seed}"


def stats_command(suite: Suite, moments: Path) -> str:
    """The command that collects the input moments of a suite into the folder `moments`."""
    command = f"raymerge stats --suite {suite.argument}"
    if moments != moments_dir(suite):
        command += f" --output {shlex.quote(str(moments))}"
    return command


def demo_suite(profile: str | None = None, seed: int = 0) -> Suite:
    """The embedded suite, which need not be prepared yet.

    Raises:
        SuiteError: unknown profile.
    """
    from raymerge.suites.demo import recipe as demo

    profile = check_profile("demo", profile or "full", demo.VARIANTS)
    recipe = demo.make_recipe(profile, seed)  # type: ignore[arg-type]
    root = cache_dir() / "suites" / f"demo-{profile}-seed{seed}-{demo.content_address(recipe)}"
    return suite_from_json(demo.describe(recipe), root)


def check_profile(suite: str, profile: str, known: Iterable[str]) -> str:
    """`profile`, or SuiteError if the suite has no such one."""
    if profile not in known:
        raise SuiteError(f"suite '{suite}' has no profile '{profile}'. {did_you_mean(profile, known)}")
    return profile


def open_suite(root: Path) -> Suite:
    """The suite in a folder.

    Raises:
        SuiteError: there is no folder, no `suite.json` in it, or it is not one.
    """
    path = root / "suite.json"
    try:
        return suite_from_json(json.loads(path.read_text()), root)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read ({error.strerror}). Give the folder that holds suite.json.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(f"{path}: is not a suite ({type(error).__name__}: {error}). Write it again.") from None


def suite_from_json(value: Mapping[str, Any], root: Path) -> Suite:
    """Build a Suite from the content of `suite.json`."""
    if value.get("format") != SUITE_FORMAT:
        raise SuiteError(f"{root / 'suite.json'}: format is {value.get('format')!r}, expected {SUITE_FORMAT}.")
    backbones = {
        name: Backbone(name=name, zero_shot=b["zero_shot"], mean=tuple(b["mean"]), std=tuple(b["std"]))
        for name, b in value["backbones"].items()
    }
    tasks = tuple(Task(name=t["name"], classes=tuple(t["classes"]), images=t["images"]) for t in value["tasks"])
    return Suite(value["name"], value["profile"], value["seed"], root, backbones, tasks)


def write_suite_json(root: Path, value: Mapping[str, Any]) -> None:
    """Mark the suite under `root` as complete."""
    with whole_file(root / "suite.json") as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
