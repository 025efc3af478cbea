"""`raymerge merge` as a user runs it: what it writes, prints and refuses, and that a failure leaves nothing."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors
import safetensors.torch
import torch
from some_models import SETTINGS, assert_identical, names_in, some_states, write_states
from tiny_suite import BACKBONE, RECIPE, stop_preparation, tiny_moments, tiny_suite
from torch import Tensor
from typer.testing import CliRunner

import raymerge
from raymerge import cli, model_file
from raymerge.checkpoints import PREFIX, Checkpoint, file_sha256, save_state_dict
from raymerge.images import open_images
from raymerge.merge_model import MergedModel
from raymerge.suites import Suite, moments_dir
from raymerge.suites.demo.clip import CONTEXT_LENGTH, HEAD_WIDTH, TEXT_HEADS, build_clip, vocabulary
from raymerge.suites.demo.recipe import IMAGE_SIZE

ROOT = Path(__file__).parent.parent
INTERRUPTED = "interrupted: nothing was written, and m.safetensors is as it was before.\n"
PLAIN = ["--base", "zero.pt", "--expert", "a=expert0.pt", "--expert", "b=expert1.pt", "--expert", "c=expert2.pt"]
ISO_C = ["--method", "iso-c", "--alpha", "0.7"]
OUT = ["--output", "m.safetensors"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite(tmp_path_factory.mktemp("sound"), num_tasks=3)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with plain files, and an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    write_states(Path(), *some_states())


@pytest.fixture
def suite(sound: Suite) -> Suite:
    """A copy to change, called "suite" in the working folder."""
    shutil.copytree(sound.root, "suite")
    return replace(sound, root=Path("suite"))


def merge(*args: str):
    return CliRunner().invoke(cli.app, ["merge", *args], prog_name="raymerge", catch_exceptions=False)


def done(*args: str) -> dict[str, Any]:
    found = merge(*args, "--json")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def assert_refused(args: list[str], code: int, message: str) -> None:
    """In one sentence on stderr, with nothing written."""
    before = names_in(Path())
    found = merge(*args)
    assert (found.exit_code, found.stdout) == (code, ""), found.stderr
    assert message in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
    assert names_in(Path()) == before


def load(path: str = "m.safetensors") -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def metadata(path: str = "m.safetensors") -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def python_merge(method: str, **kwargs: Any) -> dict[str, Tensor]:
    zero_shot, experts = some_states()
    return raymerge.merge(zero_shot, experts, method=method, **kwargs)


# --- what it writes and prints --------------------------------------------------------------------------------------


def test_plain_files(monkeypatch):
    _, experts = some_states()
    safetensors.torch.save_file(experts[1], "expert1.safetensors")
    args = [arg.replace("expert1.pt", "expert1.safetensors") for arg in PLAIN]
    found = merge(*args, *ISO_C, *OUT, "--device", "cpu")
    assert found.exit_code == 0, found.stderr
    assert_identical(load(), python_merge("iso-c", alpha=0.7))
    assert found.stdout.splitlines() == [
        "Method   iso-c, alpha 0.7",
        "Experts  3: a, b, c",
        "Tensors  8 merged, 1 as in the base model",
        "Notes    none",
        f"Model    m.safetensors ({Path('m.safetensors').stat().st_size / 1e6:.1f} MB)",
        f"SHA-256  {file_sha256(Path('m.safetensors'))}",
        "Card     README.md",
    ]
    assert found.stderr.splitlines() == [
        "loading torch",
        "checking checkpoints",
        "merging 3 experts by iso-c on cpu",
    ]
    assert json.loads(metadata()["experts"])[1] == {
        "name": "b",
        "file": "expert1.safetensors",
        "sha256": file_sha256(Path("expert1.safetensors")),
    }


def test_json():
    params = ["--param", "mask_lambda=0.3,0.5,0.4", "--param", "min_tasks=2"]
    found = merge(*PLAIN, "--method", "consensus-ta", *params, "--alpha", "1", *OUT, "--json", "--quiet")
    assert (found.exit_code, found.stderr) == (0, "")
    assert json.loads(found.stdout) == {
        "output": "m.safetensors",
        "sha256": file_sha256(Path("m.safetensors")),
        "bytes": Path("m.safetensors").stat().st_size,
        "card": "README.md",
        "method": "consensus-ta",
        "params": {"mask_lambda": [0.3, 0.5, 0.4], "min_tasks": 2.0},
        "alpha": 1.0,
        "update_only": False,
        "experts": ["a", "b", "c"],
        "tensors": {"merged": 8, "unchanged": 1},
        "notes": [],
    }
    assert_identical(load(), python_merge("consensus-ta", alpha=1, **SETTINGS["consensus-ta"]))


def test_a_fixed_alpha_need_not_be_given():
    assert done(*PLAIN, "--method", "weight-averaging", *OUT)["alpha"] == 1 / 3


def test_an_update():
    assert done(*PLAIN, "--method", "iso-c", "--update-only", *OUT)["alpha"] is None
    update = load()
    zero_shot, _ = some_states()
    for name, value in python_merge("iso-c", alpha=0.7).items():
        torch.testing.assert_close(zero_shot[name] + 0.7 * update[name], value)
    assert "alpha" not in metadata()
    assert "Add alpha times every tensor" in Path("README.md").read_text()


def test_a_suite(suite):
    found = done("--suite", "./suite", *ISO_C, "--tasks", "Task2,Task0", "--output", "new/folder/m.safetensors")
    assert found["experts"] == ["Task2", "Task0"]
    experts = [suite.expert_path(BACKBONE, task) for task in ("Task2", "Task0")]
    expected = raymerge.merge(suite.zero_shot_path(BACKBONE), experts, method="iso-c", alpha=0.7)
    assert_identical(load(found["output"]), expected)
    about = metadata(found["output"])
    assert {key: about[key] for key in ("suite", "profile", "seed", "backbone")} == {
        "suite": "tiny",
        "profile": "tiny",
        "seed": "0",
        "backbone": BACKBONE,
    }
    assert "suite/" not in json.dumps(about), "no folder of this machine is told"
    assert names_in(Path("new/folder")) == ["README.md", "m.safetensors"]
    assert done("--suite", "./suite", *ISO_C, "--num-tasks", "2", *OUT)["experts"] == ["Task0", "Task1"]
    assert len(done("--suite", "./suite", *ISO_C, *OUT, "--force", "--backbone", BACKBONE)["experts"]) == 3


def test_moments(suite, tmp_path):
    """Those that `raymerge stats` has collected, or those of another folder."""
    args = ["--method", "scale-svd", "--alpha", "1", "--suite", "./suite", *OUT, "--force"]
    missing = f"no such file of input moments. Collect it with: raymerge stats --suite {suite.root}"
    assert_refused(args, 4, missing)
    tiny_moments(suite, moments_dir(suite))
    expected = done(*args)["sha256"]
    assert [entry["name"] for entry in json.loads(metadata()["moments"])] == ["Task0", "Task1", "Task2"]
    tiny_moments(suite, Path("my moments"))
    assert done(*args, "--moments", "my moments")["sha256"] == expected
    assert_refused([*args, "--moments", "nowhere"], 4, "Collect it with: raymerge stats --suite suite --output nowhere")
    plain = ["--method", "scale-svd", "--alpha", "1", *OUT, "--force"]
    plain += ["--base", str(suite.zero_shot_path(BACKBONE))]
    for task in suite.tasks:
        plain += ["--expert", f"{task.name}={suite.expert_path(BACKBONE, task.name)}"]
    before = load()
    done(*plain, "--moments", f"my moments/{BACKBONE}")
    assert_identical(load(), before)
    assert_refused(plain, 2, "method 'scale-svd' needs input moments: give --moments, a folder with a file NAME.safe")
    shutil.copy(f"my moments/{BACKBONE}/Task0.safetensors", f"my moments/{BACKBONE}/Task1.safetensors")
    assert_refused([*args, "--moments", "my moments"], 4, "collected from another expert")


def test_equal_commands_write_equal_bytes():
    first = merge(*PLAIN, "--method", "ties", "--alpha", "1", *OUT).stdout
    files = {name: Path(name).read_bytes() for name in ("m.safetensors", "README.md")}
    time.sleep(0.01)
    assert merge(*PLAIN, "--method", "ties", "--alpha", "1", *OUT, "--force").stdout == first
    assert {name: Path(name).read_bytes() for name in files} == files


def test_the_demo_is_prepared_first(monkeypatch):
    events = stop_preparation(monkeypatch)
    args = ["--suite", "demo", "--profile", "reduced", "--suite-seed", "5", *ISO_C, *OUT]
    assert_refused(args, 4, "error: the preparation stops here.")
    assert events == [(None, False), ("demo", "reduced", 5, "slots")]


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card():
    done(*PLAIN, "--method", "ties", "--param", "keep=0.3", "--alpha", "0.5", *OUT)
    text = Path("README.md").read_text()
    front = text.split("---\n")[1]
    assert front.splitlines() == [
        'base_model: "zero.pt"',
        "library_name: open_clip",
        "tags:",
        "- merge",
        "- model-merging",
        "- raymerge",
        "- ties",
    ]
    assert "| `keep` | 0.3 |" in text
    assert "| `alpha` | 0.5 |" in text
    assert f"SHA-256 `{file_sha256(Path('m.safetensors'))}`" in text
    for name, file in {"base model": "zero.pt", "a": "expert0.pt", "c": "expert2.pt"}.items():
        assert f"| {name} | {file} | `{file_sha256(Path(file))}` |" in text


def test_a_card_never_replaces_anothers():
    Path("README.md").write_text("# My project\n")
    assert done(*PLAIN, *ISO_C, *OUT)["card"] == "m.README.md"
    assert done(*PLAIN, *ISO_C, *OUT, "--force")["card"] == "m.README.md"
    assert done(*PLAIN, *ISO_C, "--output", "n.safetensors")["card"] == "n.README.md"
    assert Path("README.md").read_text() == "# My project\n"
    Path("m.README.md").write_text(Path("m.README.md").read_text().replace("Iso-C", "The best"))
    found = merge(*PLAIN, *ISO_C, *OUT, "--force")
    assert found.exit_code == 0
    assert "has no model card: neither README.md nor its own is raymerge's to replace." in found.stderr
    assert "The best" in Path("m.README.md").read_text(), "an edited card is its author's"


def test_each_model_of_a_folder_has_a_card():
    assert done(*PLAIN, *ISO_C, *OUT)["card"] == "README.md"
    assert done(*PLAIN, *ISO_C, "--output", "n.safetensors")["card"] == "n.README.md"
    assert done(*PLAIN, "--method", "iso-c", "--alpha", "2", *OUT, "--force")["card"] == "README.md"
    assert "| `alpha` | 2.0 |" in Path("README.md").read_text()


def test_a_card_that_cannot_be_written(monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raymerge.model_card.write_card", fail)
    found = merge(*PLAIN, *ISO_C, *OUT, "--json", "--quiet")
    assert found.exit_code == 0
    assert found.stderr == (
        "README.md: the model card cannot be written (No space left on device); the model is complete.\n"
    )
    assert json.loads(found.stdout)["card"] is None


def test_names_cannot_break_the_card():
    hostile = 'x | y` <b>*"{}'
    args = ["--base", "zero.pt", "--expert", f"{hostile}=expert0.pt"]
    assert done(*args, *ISO_C, *OUT)["experts"] == [hostile]
    assert json.loads(metadata()["experts"])[0]["name"] == hostile
    assert '| x \\| y\\` \\<b\\>\\*"{} | expert0.pt |' in Path("README.md").read_text()


# --- open_clip ------------------------------------------------------------------------------------------------------


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    """The tiny suite's CLIP as a model of open_clip."""
    config = {
        "embed_dim": RECIPE.embed_dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": RECIPE.layers,
            "width": RECIPE.width,
            "head_width": HEAD_WIDTH,
            "patch_size": RECIPE.patch_size,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(vocabulary()) + 2,
            "width": RECIPE.text_width,
            "heads": TEXT_HEADS,
            "layers": RECIPE.text_layers,
        },
    }
    (tmp_path / "tiny-clip-of-a-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip-of-a-test.json")
    return "tiny-clip-of-a-test"


def run_card(architecture: str, card: str = "README.md", tag: str = "") -> torch.nn.Module:
    """The model that the card's code gives."""
    code = Path(card).read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("ARCHITECTURE", architecture).replace(', pretrained="TAG"', tag)
    space: dict[str, Any] = {}
    exec(code, space)
    return space["model"].eval()


def test_a_whole_clip_loads_in_open_clip(architecture):
    base = build_clip(RECIPE)
    generator = torch.Generator().manual_seed(1)
    expert = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in base.state_dict().items()}
    save_state_dict(Path("clip.pt"), base.state_dict())
    save_state_dict(Path("tuned.pt"), expert)
    done("--base", "clip.pt", "--expert", "a=tuned.pt", "--method", "task-arithmetic", "--alpha", "0.5", *OUT)
    model = run_card(architecture)
    assert isinstance(model, open_clip.CLIP)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (base.state_dict()[name] + expert[name]) / 2)


def test_the_published_layout_loads_in_open_clip(architecture, suite):
    done("--suite", "./suite", *ISO_C, *OUT)
    model = run_card(architecture)
    merged = load()
    for name, value in model.visual.state_dict().items():
        assert torch.equal(value, merged[f"{PREFIX}visual.{name}"])
    pixels, _ = open_images(suite.images_path("Task0", "test")).read(0, 4)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    zero_shot = Checkpoint(suite.zero_shot_path(BACKBONE))
    before = model.encode_image(images)
    model.load_state_dict({n.removeprefix(PREFIX): zero_shot.tensor(n) for n in zero_shot.names}, strict=False)
    assert not torch.allclose(model.encode_image(images), before), "it is another model than the base"


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([*PLAIN, "--method", "iso_c", "--alpha", "1", *OUT], 2, "unknown method 'iso_c'. Did you mean 'iso-c'?"),
        ([*PLAIN, "--method", "fine-tuned", *OUT], 2, "is a reference that merged models are compared with"),
        ([*PLAIN, "--method", "iso-c", *OUT], 2, "needs an alpha: a sweep would look for it between 0.1 and 3."),
        ([*PLAIN, "--method", "iso-c", "--alpha", "nan", *OUT], 2, "alpha is nan, expected a number"),
        ([*PLAIN, *ISO_C, "--param", "keep=1", *OUT], 2, "method 'iso-c' has no parameter 'keep'. It has none."),
        ([*PLAIN, *ISO_C, "--param", "keep", *OUT], 2, "expected NAME=VALUE such as keep=0.2."),
        ([*PLAIN, *ISO_C, "--output", "s3://b/m.safetensors"], 2, "is not a file of this machine"),
        ([*PLAIN, *ISO_C, "--output", "m.pt"], 2, "no name of a .safetensors file. Did you mean 'm.safetensors'?"),
        ([*PLAIN, *ISO_C, "--output", "m"], 2, "Did you mean 'm.safetensors'?"),
        ([*PLAIN, *ISO_C, "--output", "."], 2, "Did you mean 'merged.safetensors'?"),
        ([*PLAIN, *ISO_C, "--output", ".safetensors"], 2, "is no name of a .safetensors file."),
        ([*ISO_C, *OUT], 2, "nothing to merge: give --suite, or --base with at least one --expert."),
        (["--base", "zero.pt", *ISO_C, *OUT], 2, "--expert is missing: give at least one, as NAME=FILE."),
        (["--expert", "a=expert0.pt", *ISO_C, *OUT], 2, "--base is missing: the model that the experts were fine-"),
        ([*PLAIN, "--suite", "demo", *ISO_C, *OUT], 2, "--suite and --base with --expert exclude each other"),
        ([*PLAIN, "--num-tasks", "2", *ISO_C, *OUT], 2, "--num-tasks says which part of a suite is merged, but there"),
        ([*PLAIN, "--expert", "expert1.pt", *ISO_C, *OUT], 2, "is not a name and a file, expected NAME=FILE such as"),
        ([*PLAIN, "--expert", "a=expert1.pt", *ISO_C, *OUT], 2, "--expert 'a' is given twice; names have to differ."),
        ([*PLAIN, "--expert", "../a=expert1.pt", *ISO_C, *OUT], 2, "a name has no slash and only printable characters"),
        ([*PLAIN, "--moments", "m", *ISO_C, *OUT], 2, "method 'iso-c' uses no input moments; leave --moments out."),
        ([*PLAIN, *ISO_C, "--output", "zero.pt/m.safetensors"], 4, "zero.pt is no folder that one can write to."),
        ([*PLAIN, *ISO_C, "--output", f"{'x' * 250}.safetensors"], 4, "is no name of a file (File name too long)."),
        ([*PLAIN, *ISO_C, "--output", "~nobody-here/m.safetensors"], 1, "Could not determine home directory."),
        (["--suite", "demmo", *ISO_C, *OUT], 4, "unknown suite 'demmo'. Did you mean 'demo'?"),
        (["--suite", "demo", "--tasks", "Nil", *ISO_C, *OUT], 2, "suite 'demo' has no task 'Nil'."),
        (["--suite", "demo", "--backbone", "ViT", *ISO_C, *OUT], 2, "suite 'demo' has no backbone 'ViT'."),
        (["--base", "nil.pt", "--expert", "a=expert0.pt", *ISO_C, *OUT], 4, "nil.pt: no such checkpoint file."),
        (["--base", "zero.pt", "--expert", "a=nil.pt", *ISO_C, *OUT], 4, "nil.pt: no such checkpoint file."),
        (["--base", "zero.pt", "--expert", "a=.", *ISO_C, *OUT], 4, ".: no such checkpoint file."),
    ],
)
def test_mistakes_of_the_user(args, code, message):
    assert_refused(args, code, message)


def test_an_output_that_is_there():
    Path("m.safetensors").write_text("old")
    assert_refused([*PLAIN, *ISO_C, *OUT], 4, "m.safetensors: exists already. Give --force to replace it, or choose")
    assert Path("m.safetensors").read_text() == "old"
    done(*PLAIN, *ISO_C, *OUT, "--force")
    assert_identical(load(), python_merge("iso-c", alpha=0.7))
    Path("f.safetensors").mkdir()
    assert_refused([*PLAIN, *ISO_C, "--output", "f.safetensors", "--force"], 4, "f.safetensors: is a folder.")


def test_an_output_that_appears_meanwhile(monkeypatch):
    value = MergedModel.tensor

    def appearing(self: MergedModel, name: str) -> Tensor:
        Path("m.safetensors").write_text("another's")
        return value(self, name)

    monkeypatch.setattr(MergedModel, "tensor", appearing)
    found = merge(*PLAIN, *ISO_C, *OUT)
    assert found.exit_code == 4
    assert "m.safetensors: exists already." in found.stderr
    assert Path("m.safetensors").read_text() == "another's"
    assert not list(Path().glob(".m*"))


def test_an_output_that_is_an_input():
    zero_shot, _ = some_states()
    safetensors.torch.save_file(zero_shot, "zero.safetensors")
    Path("link.safetensors").symlink_to("zero.safetensors")
    os.link("zero.safetensors", "hard.safetensors")
    args = ["--base", "zero.safetensors", "--expert", "a=expert0.pt", *ISO_C, "--force", "--output"]
    for name in ("zero.safetensors", "./zero.safetensors", "link.safetensors", "hard.safetensors"):
        assert_refused([*args, name], 2, "is a file that is to be merged; choose another name.")
    assert_identical(load("zero.safetensors"), zero_shot)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_inputs_that_are_broken():
    _, experts = some_states()
    name = "model.visual.ln.bias"
    args = ["--base", "zero.pt", "--expert", "a=expert0.pt", "--expert", "b=x.pt", *ISO_C, *OUT]
    broken: list[tuple[Any, str]] = [
        ({**experts[0], name: torch.full((7,), torch.nan)}, "x.pt: expert 'b': 'model.visual.ln.bias' has 7 NaN"),
        ({**experts[0], name: torch.zeros(8)}, "expert 'b': 'model.visual.ln.bias' is (8,), zero-shot is (7,)"),
        ({**experts[0], "y": torch.zeros(8)}, "expert 'b' has 'y', which the zero-shot model lacks"),
        ({}, "expert 'b' lacks 'model.logit_scale' (9 keys missing, 0 unexpected)"),
        ({**experts[0], 1: torch.zeros(1)}, "x.pt: holds dict, expected a dict of tensors"),
        ({"state_dict": experts[0]}, "x.pt: holds dict, expected a dict of tensors"),
        (torch.nn.Linear(2, 2), "x.pt: refused, because loading it would run code: it needs torch.nn"),
        (Bomb(), "x.pt: refused, because loading it would run code: it needs builtins.getattr, pathlib"),
    ]
    for content, message in broken:
        torch.save(content, "x.pt")
        assert_refused(args, 4, message)
    Path("x.pt").write_bytes(Path("expert1.pt").read_bytes()[:-3000])
    assert_refused(args, 4, "x.pt: truncated or not a checkpoint")
    Path("x.pt").write_bytes(pickle.dumps(Bomb()))
    assert_refused(args, 4, "x.pt: ")
    assert not Path("exploded").exists()
    Path("x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert_refused([arg.replace("x.pt", "x.safetensors") for arg in args], 4, "not a readable safetensors file")


def test_nothing_is_left_when_the_disk_is_full(monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_file.os, "posix_fallocate", full)
    message = "cannot be written (No space left on device; it takes 0.0 MB). Make room for it, or choose another"
    assert_refused([*PLAIN, *ISO_C, "--output", "new/m.safetensors"], 4, message)
    Path("m.safetensors").write_text("old")
    assert_refused([*PLAIN, *ISO_C, *OUT, "--force"], 4, message)
    assert Path("m.safetensors").read_text() == "old"


def test_a_folder_that_cannot_be_written_to(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write everywhere
    assert_refused([*PLAIN, *ISO_C, "--output", "new/m.safetensors"], 4, "is no folder that one can write to.")


def test_a_result_that_overflows():
    zero_shot, experts = some_states()
    write_states(Path(), {n: v.half() for n, v in zero_shot.items()}, experts)
    args = [*PLAIN, "--method", "task-arithmetic", "--alpha", "1e7", *OUT]
    assert_refused(args, 1, "Take a smaller alpha, or a base of a wider dtype.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    assert_refused([*PLAIN, *ISO_C, *OUT, "--device", "cuda"], 2, "--device cuda, but torch finds no CUDA device")


# --- interrupted ----------------------------------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing(monkeypatch):
    def interrupted(self: MergedModel, name: str) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # by someone impatient
        raise ValueError("as torch makes of it")

    monkeypatch.setattr(MergedModel, "tensor", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = merge(*PLAIN, *ISO_C, "--output", "new/m.safetensors", "--quiet")
    assert (found.exit_code, found.stdout) == (130, "")
    assert found.stderr == INTERRUPTED.replace("m.safetensors", "new/m.safetensors")
    assert not Path("new").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_interrupt_that_comes_too_late(monkeypatch):
    """The model has its name; the card is written, and the command ends as ever."""
    from raymerge import model_card

    find_card = model_card.find_card

    def late(model: Path) -> Path | None:
        os.kill(os.getpid(), signal.SIGINT)
        return find_card(model)

    monkeypatch.setattr(model_card, "find_card", late)
    assert done(*PLAIN, *ISO_C, *OUT)["card"] == "README.md"
    assert Path("README.md").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_in_the_middle(number):
    """The process is stopped while it merges; the old file stays, and nothing else does."""
    names = {f"{i}.weight": torch.randn(400, 400, generator=torch.Generator().manual_seed(i)) for i in range(40)}
    save_state_dict(Path("large.pt"), {name: torch.zeros_like(value) for name, value in names.items()})
    save_state_dict(Path("tuned.pt"), names)
    Path("m.safetensors").write_text("old")
    before = names_in(Path())
    args = ["--base", "large.pt", "--expert", "a=tuned.pt", "--expert", "b=tuned.pt", *ISO_C, *OUT, "--force"]
    process = subprocess.Popen(
        [sys.executable, "-m", "raymerge", "merge", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not list(Path().glob(".m.safetensors.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert stderr.endswith(INTERRUPTED)
    assert "Traceback" not in stderr
    assert Path("m.safetensors").read_text() == "old"
    assert names_in(Path()) == before
