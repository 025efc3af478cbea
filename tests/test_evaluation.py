"""Evaluation with encoders so simple that the right answers are known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raymerge.checkpoints import Checkpoint, save_state_dict
from raymerge.errors import CheckpointError, SuiteError
from raymerge.evaluation import Evaluator

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "device": torch.device("cpu")}
HEIGHT, WIDTH = 2, 3


class Visual(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Parameter(torch.zeros(3, dim))
        self.shift = nn.Parameter(torch.zeros(dim))


class MeanColour(nn.Module):
    """Features are a linear function of an image's mean colour. Remembers what it was given."""

    def __init__(self, dim: int = 3):
        super().__init__()
        self.visual = Visual(dim)
        self.dropout = nn.Dropout(0.9)
        self.seen: list[Tensor] = []
        self.dtypes: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        features = self.dropout(images.mean(dim=(2, 3))) @ self.visual.proj + self.visual.shift
        self.dtypes.append((images.mean(dim=(2, 3)) @ self.visual.proj).dtype)
        return features


def zero_shot(path: Path, proj: Tensor, shift: Tensor | None = None, **more: Tensor) -> Checkpoint:
    shift = torch.zeros(proj.shape[1]) if shift is None else shift
    save_state_dict(path, {"model.visual.proj": proj, "model.visual.shift": shift, **more})
    return Checkpoint(path)


def solid(*colours: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, None, None, :].expand(-1, HEIGHT, WIDTH, 3).contiguous()


def some_images(count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)


def test_colours_are_their_own_classes(tmp_path):
    evaluator = Evaluator(MeanColour(), zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN)
    images = solid((9, 0, 0), (0, 9, 0), (0, 0, 9), (200, 255, 0))
    head = torch.eye(3), torch.zeros(3)
    assert evaluator.count_correct(images, torch.tensor([0, 1, 2, 1]), *head) == 4
    assert evaluator.count_correct(images, torch.tensor([0, 1, 1, 0]), *head) == 2
    assert evaluator.count_correct(images, torch.tensor([1, 0, 0, 0]), *head) == 0
    assert evaluator.embed_dim == 3


def test_features_are_normalised_before_the_bias_is_added(tmp_path):
    """Features 30, 40 become 0.6, 0.8; with the bias 0.9 and 0.8. Unnormalised, 30.3 would lose against 40."""
    evaluator = Evaluator(
        MeanColour(2), zero_shot(tmp_path / "z.pt", torch.zeros(3, 2), torch.tensor([30.0, 40.0])), **PLAIN
    )
    assert evaluator.embed_dim == 2
    images, head = solid((0, 0, 0)), torch.eye(2)
    assert evaluator.count_correct(images, torch.tensor([0]), head, torch.tensor([0.3, 0.0])) == 1
    assert evaluator.count_correct(images, torch.tensor([1]), head, torch.tensor([0.1, 0.0])) == 1
    # rows of the head are classes, and have lengths of their own
    assert evaluator.count_correct(images, torch.tensor([0]), torch.diag(torch.tensor([1.4, 1.0])), torch.zeros(2)) == 1
    assert evaluator.count_correct(images, torch.tensor([2]), torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.zeros(3))


def test_images_are_normalised_per_channel(tmp_path):
    encoder = MeanColour()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 4.0)
    evaluator = Evaluator(
        encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), mean=mean, std=std, device=torch.device("cpu")
    )
    images = some_images(3)
    evaluator.count_correct(images, torch.zeros(3, dtype=torch.int64), torch.eye(3), torch.zeros(3))
    (seen,) = encoder.seen
    assert seen.shape == (3, 3, HEIGHT, WIDTH)
    for channel in range(3):
        expected = (images[..., channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(seen[:, channel].double(), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_theta_0_plus_alpha_times_update(tmp_path):
    encoder = MeanColour()
    proj, shift = torch.arange(9.0).reshape(3, 3), torch.tensor([1.0, 2.0, 3.0])
    checkpoint = zero_shot(tmp_path / "z.pt", proj, shift, text=torch.ones(2))
    before = (tmp_path / "z.pt").read_bytes()
    evaluator = Evaluator(encoder, checkpoint, **PLAIN)
    assert torch.equal(encoder.visual.proj, proj)
    assert torch.equal(encoder.visual.shift, shift)
    addresses = [parameter.data_ptr() for parameter in encoder.parameters()]

    update = {"model.visual.proj": torch.full((3, 3), 2.0), "model.text": torch.ones(2)}
    for alpha in (0.5, 0.5, -1.0):  # twice the same: nothing adds up
        evaluator.set_weights(update, alpha)
        assert torch.equal(encoder.visual.proj, proj + alpha * 2)
        assert torch.equal(encoder.visual.shift, shift)
    evaluator.set_weights({"model.visual.shift": torch.tensor([1.0, 0.0, 0.0])}, 3.0)
    assert torch.equal(encoder.visual.proj, proj), "what is not in this update is at theta_0"
    assert encoder.visual.shift.tolist() == [4.0, 2.0, 3.0]
    evaluator.set_weights({}, 7.0)
    assert torch.equal(encoder.visual.shift, shift)
    assert [parameter.data_ptr() for parameter in encoder.parameters()] == addresses, "in place"
    assert (tmp_path / "z.pt").read_bytes() == before
    assert torch.equal(checkpoint.tensor("model.visual.proj"), proj)
    assert update["model.visual.proj"].unique().tolist() == [2.0]


def test_new_weights_give_new_answers(tmp_path):
    """Swapping red and green is theta_0 + 1 * swap."""
    evaluator = Evaluator(MeanColour(), zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN)
    images, labels, head = solid((9, 0, 0), (0, 9, 0)), torch.tensor([0, 1]), (torch.eye(3), torch.zeros(3))
    swap = torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    counts = []
    for update, alpha in (({}, 0.0), ({"model.visual.proj": swap}, 1.0), ({"model.visual.proj": swap}, 0.4), ({}, 0.0)):
        evaluator.set_weights(update, alpha)
        counts.append(evaluator.count_correct(images, labels, *head))
    assert counts == [2, 0, 2, 2]


@given(batch_size=st.integers(1, 45), count=st.integers(1, 40))
def test_batches_change_no_count(tmp_path_factory, batch_size, count):
    path = tmp_path_factory.getbasetemp() / "batches.pt"
    proj = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    images, head = some_images()[:count], torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    features = images.double().mean(dim=(1, 2)) / 255 @ proj.double()
    predicted = (features @ head.double().T).argmax(dim=1)  # the length of a feature does not matter without bias
    labels = torch.where(torch.arange(count) % 3 == 0, (predicted + 1) % 5, predicted)
    encoder = MeanColour(4)
    evaluator = Evaluator(encoder, zero_shot(path, proj), **PLAIN, batch_size=batch_size)
    assert evaluator.count_correct(images, labels, head, torch.zeros(5)) == int((predicted == labels).sum())
    sizes = [len(seen) for seen in encoder.seen]
    assert sum(sizes) == count
    assert all(size == batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch_size


def test_encoded_batches_are_the_features_in_order(tmp_path):
    proj = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    evaluator = Evaluator(MeanColour(2), zero_shot(tmp_path / "z.pt", proj), **PLAIN, batch_size=2)
    batches = list(evaluator.encode(solid((255, 0, 9), (0, 255, 9), (51, 51, 9))))
    assert [len(batch) for batch in batches] == [2, 1]
    torch.testing.assert_close(torch.cat(batches), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.2, 0.4]]))
    assert not torch.is_inference_mode_enabled(), "nothing of the encoder's mode is left to the caller"


def test_batches_of_a_cpu(tmp_path):
    encoder = MeanColour()
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN)
    evaluator.count_correct(some_images(130), torch.zeros(130, dtype=torch.int64), torch.eye(3), torch.zeros(3))
    assert [len(seen) for seen in encoder.seen] == [64, 64, 2]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_that_of_the_encoders_products(tmp_path, precision, dtype):
    encoder = MeanColour()
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, precision=precision)
    images = solid((9, 0, 0), (0, 9, 0))
    assert evaluator.count_correct(images, torch.tensor([0, 1]), torch.eye(3), torch.zeros(3)) == 2
    assert encoder.dtypes == [dtype]
    assert encoder.seen[0].dtype == encoder.visual.proj.dtype == torch.float32


def test_heads_are_applied_in_single_precision(tmp_path):
    """Logits 1 and 1 + 2 ** -12, which bfloat16 cannot tell apart (the first of equals would win)."""
    evaluator = Evaluator(
        MeanColour(1), zero_shot(tmp_path / "z.pt", torch.zeros(3, 1), torch.ones(1)), **PLAIN, precision="bf16"
    )
    head = torch.tensor([[1.0], [1.0 + 2**-12]])
    assert evaluator.count_correct(solid((0, 0, 0)), torch.tensor([1]), head, torch.zeros(2)) == 1


def test_the_encoder_is_frozen(tmp_path):
    encoder = MeanColour().train()
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN)
    assert not encoder.dropout.training, "or counts would be random"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    evaluator.count_correct(solid((9, 0, 0)), torch.tensor([0]), torch.eye(3), torch.zeros(3))
    assert encoder.seen[0].is_inference()


def test_half_precision_checkpoints_are_widened(tmp_path):
    encoder = MeanColour()
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", (torch.eye(3) / 3).bfloat16()), **PLAIN)
    update = {"model.visual.proj": torch.full((3, 3), 2.0**-20)}
    evaluator.set_weights(update, 1.0)
    assert encoder.visual.proj[0, 0].item() == (torch.tensor(1 / 3).bfloat16().float() + 2.0**-20).item()


def test_checkpoints_of_other_encoders_are_refused(tmp_path):
    save_state_dict(tmp_path / "z.pt", {"model.visual.proj": torch.eye(3)})
    with pytest.raises(CheckpointError, match=r"z\.pt: lacks 'model\.visual\.shift', which the encoder needs"):
        Evaluator(MeanColour(), Checkpoint(tmp_path / "z.pt"), **PLAIN)
    with pytest.raises(CheckpointError, match=r"'model\.visual\.proj' is \(3, 2\), the encoder expects \(3, 3\)"):
        Evaluator(MeanColour(), zero_shot(tmp_path / "y.pt", torch.ones(3, 2)), **PLAIN)


def test_unknown_models_are_refused():
    from raymerge.backbones import build_image_encoder
    from raymerge.suites import Backbone

    with pytest.raises(
        SuiteError, match=r"backbone 'mine': open_clip has no model 'ViT-B32'\. Did you mean 'ViT-B-32'"
    ):
        build_image_encoder(Backbone("mine", "", model="ViT-B32"), {})
