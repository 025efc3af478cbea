"""Evaluation with encoders so simple that the right answers are known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raymerge.checkpoints import Checkpoint, save_state_dict
from raymerge.errors import CheckpointError, EvaluationError, SuiteError
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


def test_normalisation_to_the_last_bit(tmp_path):
    """(pixel - mean) / std in single precision, one operation after the other."""
    encoder = MeanColour()
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    device = torch.device("cpu")
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), mean=mean, std=std, device=device)
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, HEIGHT, WIDTH, 3)
    list(evaluator.encode(images))
    pixels = images.permute(0, 3, 1, 2).float()
    expected = (pixels - torch.tensor(mean).view(1, 3, 1, 1) * 255) / (torch.tensor(std).view(1, 3, 1, 1) * 255)
    assert torch.equal(torch.cat(encoder.seen), expected)


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


class Layered(nn.Module):
    """Mean colour through one module of every kind that computes in half precision, and a norm that does not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (HEIGHT, WIDTH))
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.visual = Visual(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.conv(images).flatten(start_dim=2).mT)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.linear(attended[:, 0]) + self.visual.shift


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_matrices_are_held_as_they_are_computed(tmp_path, precision):
    torch.manual_seed(0)
    encoder = Layered()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    state = {f"model.{name}": value.clone() for name, value in encoder.state_dict().items()}
    save_state_dict(tmp_path / "z.pt", state)
    evaluator = Evaluator(encoder, Checkpoint(tmp_path / "z.pt"), **PLAIN, precision=precision)
    wide = {"norm.weight", "norm.bias", "visual.proj", "visual.shift"}
    assert {n for n, p in encoder.named_parameters() if p.dtype == torch.float32} >= wide
    assert {p.dtype for n, p in encoder.named_parameters() if n not in wide} == {dtype}
    update = {name: 1e-3 * torch.randn(value.shape) for name, value in state.items()}
    for alpha in (0.3, 0.7, 0.7):  # steps that get lost in half precision, were it the sum's
        evaluator.set_weights(update, alpha)
        for name, parameter in encoder.named_parameters():
            expected = state[f"model.{name}"] + alpha * update[f"model.{name}"]
            torch.testing.assert_close(parameter.float(), expected.to(parameter.dtype).float(), rtol=1e-6, atol=0)
    images = some_images(6)
    features = torch.cat(list(evaluator.encode(images)))
    assert features.dtype == torch.float32
    reference = Layered().eval()
    reference.load_state_dict({name: state[f"model.{name}"] for name in encoder.state_dict()})
    reference_evaluator = Evaluator(reference, Checkpoint(tmp_path / "z.pt"), **PLAIN)
    reference_evaluator.set_weights(update, 0.7)
    exact = torch.cat(list(reference_evaluator.encode(images)))
    torch.testing.assert_close(features, exact, rtol=0, atol=0 if precision == "fp32" else 0.03)


# --- out of memory --------------------------------------------------------------------------------------------------


class Small(MeanColour):
    """Has memory for so many images at a time."""

    def __init__(self, room: int, error: Any = None):
        super().__init__()
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none.")

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            self.seen.append(images)
            if callable(self.error):
                self.error()
            raise self.error
        return super().forward(images)


def sizes_of(encoder: MeanColour) -> list[int]:
    return [len(seen) for seen in encoder.seen]


def ask_for_too_much() -> None:
    torch.empty(2**58, dtype=torch.uint8)


@pytest.mark.parametrize("error", [None, ask_for_too_much, MemoryError()], ids=["gpu", "cpu", "c++"])
def test_out_of_memory_halves_the_batch_for_good(tmp_path, error):
    encoder = Small(room=10, error=error)
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, batch_size=32)
    images = some_images(40)
    labels, head = images.float().mean(dim=(1, 2)).argmax(dim=1), (torch.eye(3), torch.zeros(3))
    labels[::4] = (labels[::4] + 1) % 3
    assert evaluator.count_correct(images, labels, *head) == 30
    assert sizes_of(encoder) == [32, 16, 8, 8, 8, 8, 8]
    assert evaluator.batch_size == 8
    encoder.seen.clear()
    assert evaluator.count_correct(images[:20], labels[:20], *head) == 15
    assert sizes_of(encoder) == [8, 8, 4], "the size is kept"


def test_out_of_memory_in_the_middle_counts_nothing_twice(tmp_path):
    encoder = Small(room=8)
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, batch_size=7)
    images = some_images(20)
    features = evaluator.encode(images)
    found = [next(features)]
    encoder.room = 3  # another process took memory
    found += list(features)
    assert sizes_of(encoder) == [7, 7, 4, 2, 2, 2, 2, 2, 2, 1]
    torch.testing.assert_close(torch.cat(found), images.float().mean(dim=(1, 2)) / 255)


def test_odd_sizes_get_down_to_one(tmp_path):
    encoder = Small(room=1)
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, batch_size=5)
    assert len(torch.cat(list(evaluator.encode(some_images(3))))) == 3
    assert sizes_of(encoder) == [3, 3, 2, 1, 1, 1]


def test_no_memory_for_one_image(tmp_path):
    encoder = Small(room=0)
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, batch_size=4)
    with pytest.raises(EvaluationError) as caught:
        list(evaluator.encode(some_images(9)))
    assert str(caught.value) == (
        "cpu: no memory for one image at a time (CUDA out of memory); free some, or let fewer evaluators share it."
    )
    assert sizes_of(encoder) == [4, 2, 1]


def test_errors_that_are_not_about_memory_pass(tmp_path):
    encoder = Small(room=2, error=RuntimeError("a bug"))
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN, batch_size=4)
    with pytest.raises(RuntimeError, match="a bug"):
        list(evaluator.encode(some_images(9)))
    assert sizes_of(encoder) == [4]
    assert evaluator.batch_size == 4


def test_who_watches_the_encoder_is_told(tmp_path):
    """A batch of which the first layers were seen must not be passed again."""
    encoder = Small(room=2)
    checkpoint = zero_shot(tmp_path / "z.pt", torch.eye(3))
    evaluator = Evaluator(encoder, checkpoint, **PLAIN, batch_size=4, keep_batch_size=True)
    with pytest.raises(torch.OutOfMemoryError):
        list(evaluator.encode(some_images(9)))
    assert sizes_of(encoder) == [4]


def test_a_measured_batch_size_fits(tmp_path):
    encoder = Small(room=16)
    evaluator = Evaluator(encoder, zero_shot(tmp_path / "z.pt", torch.eye(3)), **PLAIN)
    assert evaluator.measure_batch_size(HEIGHT, WIDTH) in (8, 16)
    assert set(sizes_of(encoder)) <= {8, 16, 32}
    assert evaluator.batch_size == 64, "measuring changes nothing"
    assert encoder.seen[0].shape[1:] == (3, HEIGHT, WIDTH)


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
