"""Files of input moments: what is written is what is read, and no other file passes for one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import raymerge
from raymerge.checkpoints import Checkpoint, save_safetensors
from raymerge.errors import CheckpointError
from raymerge.moment_files import Origin, check_moments, image_matrices, mean_moments, write_moments
from raymerge.suites import moments_path

SHAPES = {
    "model.positional_embedding": (4, 6),
    "model.visual.conv1.weight": (3, 3, 2, 2),
    "model.visual.ln_post.bias": (3,),
    "model.visual.proj": (3, 2),
    "model.visual.attn.in_proj_weight": (9, 3),
    "model.visual.attn.out_proj.weight": (3, 3),
    "model.visual.mlp.c_proj.weight": (3, 5),
}
MOMENTS = {
    "model.visual.proj": torch.tensor([[1.0], [2.0], [3.0]]),
    "model.visual.attn.in_proj_weight": torch.tensor([[4.0, 5.0, 6.0]]),
    "model.visual.attn.out_proj.weight": torch.tensor([[0.0, 1.0, 2.0]]),
    "model.visual.mlp.c_proj.weight": torch.tensor([[1.0, 1.0, 1.0, 1.0, 6.0]]),
}
KINDS = {
    "model.visual.proj": "resid",
    "model.visual.attn.in_proj_weight": "resid",
    "model.visual.attn.out_proj.weight": "attention",
    "model.visual.mlp.c_proj.weight": "mlp",
}
ORIGIN = Origin("tiny", "small", 3, "ViT-B-32", "DTD", 17, images_sha256="1" * 64, expert_sha256="e" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = moments_path(tmp_path, "ViT-B-32", "DTD")
    write_moments(path, MOMENTS, KINDS, ORIGIN)
    return path


def check(path: Path) -> Checkpoint:
    return check_moments(path, expert_sha256=ORIGIN.expert_sha256, shapes=SHAPES, command="raymerge stats --suite s")


def test_what_is_written_is_read(path, tmp_path):
    assert path == tmp_path / "ViT-B-32" / "DTD.safetensors"
    moments = check(path)
    assert moments.names == sorted(MOMENTS)
    for name, value in MOMENTS.items():
        assert torch.equal(moments.tensor(name), value)
        assert moments.dtype(name) == torch.float32
    metadata = dict(moments.metadata())
    assert json.loads(metadata.pop("kinds")) == KINDS
    assert metadata == {
        "format": "1",
        "raymerge_version": raymerge.__version__,
        "suite": "tiny",
        "profile": "small",
        "seed": "3",
        "backbone": "ViT-B-32",
        "task": "DTD",
        "split": "val",
        "images": "17",
        "images_sha256": "1" * 64,
        "expert_sha256": "e" * 64,
    }
    assert safetensors.torch.load_file(path).keys() == MOMENTS.keys()
    assert [file.name for file in path.parent.iterdir()] == ["DTD.safetensors"]


def test_equal_moments_are_equal_bytes(path, tmp_path):
    other = tmp_path / "other.safetensors"
    write_moments(other, dict(reversed(MOMENTS.items())), dict(reversed(KINDS.items())), ORIGIN)
    assert other.read_bytes() == path.read_bytes()


def test_matrices_of_the_image_tower():
    assert image_matrices(SHAPES).keys() == MOMENTS.keys()
    assert image_matrices(SHAPES)["model.visual.proj"] == (3, 2)


def test_mean_moments_by_kind(path):
    """Over all values of a kind: 1 to 6 are 3.5 on average, though proj alone has 2 and in_proj 5."""
    assert mean_moments(check(path)) == {"resid": 3.5, "attention": 1.0, "mlp": 2.0}


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str | None) -> None:
    found = Checkpoint(path)
    merged = {**found.metadata(), **metadata}
    kept = {name: value for name, value in merged.items() if value is not None}
    save_safetensors(path, {name: found.tensor(name) for name in found.names} | (tensors or {}), kept)


def drop_tensor(path: Path) -> None:
    found = Checkpoint(path)
    tensors = {name: found.tensor(name) for name in found.names[1:]}
    save_safetensors(path, tensors, found.metadata())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (Path.unlink, "no such file of input moments. Collect it with: raymerge stats --suite s"),
        (truncate, "truncated or not a file of input moments. Collect it again with: raymerge stats --suite s"),
        (lambda path: path.write_bytes(b""), "truncated or not"),
        (lambda path: path.write_bytes(b"\xff" * 99), "truncated or not"),
        (lambda path: rewrite(path, format=None), "not a file of input moments of format 1 (its format is None)"),
        (lambda path: rewrite(path, format="2"), "not a file of input moments of format 1 (its format is 2)"),
        (lambda path: rewrite(path, kinds=None), "not a file of input moments"),
        (lambda path: rewrite(path, kinds="[1"), "not a file of input moments"),
        (lambda path: rewrite(path, kinds="[]"), "not a file of input moments"),
        (lambda path: rewrite(path, kinds="{}"), "lacks 'model.visual.attn.in_proj_weight' (4 keys missing, 0 unex"),
        (lambda path: rewrite(path, expert_sha256="f" * 64), "another expert (SHA-256 ffffffffffff, this one has eeee"),
        (lambda path: rewrite(path, expert_sha256=None), "collected from another expert (SHA-256 None"),
        (drop_tensor, "lacks 'model.visual.attn.in_proj_weight' (1 keys missing, 0 unexpected)"),
        (lambda path: rewrite(path, {"model.w": torch.ones(1, 1)}), "has 'model.w', which is no image matrix"),
        (
            lambda path: rewrite(path, {"model.visual.proj": torch.ones(1, 3)}),
            "'model.visual.proj' is (1, 3), expected (1, 2) or (3, 1) for a matrix (3, 2)",
        ),
        (lambda path: rewrite(path, {"model.visual.proj": torch.ones(3)}), "'model.visual.proj' is (3,), expected"),
        (lambda path: rewrite(path, {"model.visual.proj": torch.full((3, 1), torch.nan)}), "has NaN, infinite or neg"),
        (lambda path: rewrite(path, {"model.visual.proj": torch.full((3, 1), torch.inf)}), "has NaN, infinite or neg"),
        (lambda path: rewrite(path, {"model.visual.proj": -torch.eye(3)[:, :1]}), "has NaN, infinite or negative"),
    ],
)
def test_other_files_are_refused(path: Path, damage: Callable[[Path], None], expected: str):
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        check(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "raymerge stats --suite s" in str(caught.value)


def test_moments_of_another_backbone_are_refused(path):
    wider = {**SHAPES, "model.visual.mlp.c_proj.weight": (4, 8)}
    with pytest.raises(CheckpointError, match=r"c_proj\.weight' is \(1, 5\), expected \(1, 8\) or \(4, 1\)"):
        check_moments(path, expert_sha256=ORIGIN.expert_sha256, shapes=wider)
