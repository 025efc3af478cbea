"""The training loop and its images, by reference: plain torch, torchvision, open_clip."""

import copy
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop

from raymerge.data import Samples
from raymerge.data.train_transform import RATIO, SCALE, crop_box, to_train_pixels
from raymerge.errors import DataError, TrainingError
from raymerge.finetuning.images import TrainingImages
from raymerge.training import Batch, Batches, Trainer, TrainingRecipe, train, warmup_then_cosine

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RECIPE = TrainingRecipe(steps=6, learning_rate=0.01, weight_decay=0.1, warmup=2)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gain, self.last = nn.Linear(48, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(images.flatten(1))) * self.gain)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture
def head() -> Tensor:
    return 5 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (6, 16, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return [Batch(pixels, torch.randint(0, 3, (16,), generator=generator)) for pixels in images]


def trainer_of(encoder: nn.Module, head: Tensor, recipe: TrainingRecipe = RECIPE, **options) -> Trainer:
    device = torch.device("cpu")
    return Trainer(copy.deepcopy(encoder), head, recipe, mean=MEAN, std=STD, device=device, **options)


def trained(trainer: Trainer, steps: Sequence[Sequence[Batch]], on_step=lambda: False) -> dict[str, Tensor]:
    def source(first: int) -> Batches:
        yield from steps[first:]

    return train(trainer, source, on_step).state_dict()


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=0)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_published_schedule_by_hand():
    shares = {0: 1 / 500, 249: 0.5, 499: 1.0, 500: 1.0, 1250: 0.5, 1500: 0.25, 2000: 0.0}
    for step, share in shares.items():
        assert warmup_then_cosine(step, 2000, 500) == pytest.approx(share, abs=1e-12)
    assert warmup_then_cosine(0, 10, 0) == 1.0
    assert [warmup_then_cosine(step, 3, 500) for step in range(3)] == [1 / 500, 2 / 500, 3 / 500]


def test_agrees_with_a_plain_loop(encoder, head, batches):
    model = copy.deepcopy(encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1, foreach=False, fused=False)
    rates = [0.005, 0.01, 0.01, 0.01 * 0.853553, 0.01 * 0.5, 0.01 * 0.146447]
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = (batch.images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        features = model(images.permute(0, 3, 1, 2))
        loss = F.cross_entropy(features / features.norm(dim=-1, keepdim=True) @ head.T, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    trainer = trainer_of(encoder, head)
    kept = head.clone()
    state = trained(trainer, [[batch] for batch in batches])
    assert_close(state, dict(model.state_dict()), 1e-6)
    assert trainer.losses == pytest.approx(losses, abs=1e-6)
    assert torch.equal(head, kept)
    assert max(losses) > 1.0, "gradients are clipped"
    assert not trainer.encoder.training


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4, 4), (8, 5, 3)])
def test_accumulated_batches_are_one_batch(encoder, head, batches, sizes):
    cut = [[Batch(*parts) for parts in zip(b.images.split(sizes), b.labels.split(sizes), strict=True)] for b in batches]
    whole = trained(trainer_of(encoder, head), [[batch] for batch in batches])
    assert_close(trained(trainer_of(encoder, head), cut), whole, 1e-6)


def test_weight_decay_of_vectors(encoder, head, batches):
    """Where the gradient is zero, only the decay is left."""
    head = torch.zeros_like(head)
    for decays, gain in ((True, 1 - 0.005 * 0.1), (False, 1.0)):
        recipe = TrainingRecipe(steps=6, learning_rate=0.01, weight_decay=0.1, warmup=2, decays_vectors=decays)
        trainer = trainer_of(encoder, head, recipe)
        trainer.advance(batches[:1])
        torch.testing.assert_close(trainer.encoder.get_parameter("gain"), torch.full((8,), gain))
        weight = trainer.encoder.get_parameter("last.weight")
        torch.testing.assert_close(weight, encoder.last.weight * (1 - 0.005 * 0.1))


def test_a_bias_of_the_head(encoder, head, batches):
    bias = torch.tensor([3.0, 0.0, -3.0])
    images = (batches[0].images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    features = F.normalize(encoder(images.permute(0, 3, 1, 2)), dim=-1)
    expected = F.cross_entropy(features @ head.T + bias, batches[0].labels)
    assert trainer_of(encoder, head, bias=bias).advance(batches[:1]) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_a_state_continues_with_the_same_bits(encoder, head, batches, autocast, tmp_path):
    recipe = TrainingRecipe(steps=6, learning_rate=0.01, weight_decay=0.1, warmup=2, autocast=autocast)
    steps = [[batch] for batch in batches]
    whole = trained(trainer_of(encoder, head, recipe), steps)
    first = trainer_of(encoder, head, recipe)
    trained(first, steps, lambda: first.step == 3)
    torch.save(first.state(), tmp_path / "state.pt")
    second = trainer_of(encoder, head, recipe)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.step == 3
    continued = trained(second, steps)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    assert second.losses[:3] == first.losses
    assert len(second.losses) == 6
    exact = trainer_of(encoder, head).advance(steps[0])
    assert second.losses[0] == pytest.approx(exact, rel=0.02)
    assert (second.losses[0] == exact) == (autocast is None)


def test_a_loss_that_is_not_finite(encoder, head, batches):
    trainer = trainer_of(encoder, head)
    trainer.advance(batches[:1])
    before = copy.deepcopy(trainer.encoder.state_dict())
    head = trainer._head
    head[0, 0] = torch.inf
    with pytest.raises(TrainingError, match=r"^the loss is (inf|nan) at step 2 of 6; use a smaller learning rate"):
        trainer.advance(batches[1:2])
    assert all(torch.equal(value, before[name]) for name, value in trainer.encoder.state_dict().items())


def test_a_gradient_that_is_not_finite(encoder, head, batches):
    trainer = trainer_of(encoder, head)
    trainer.encoder.get_parameter("gain").register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"^gradients are not finite at step 1 of 6"):
        trainer.advance(batches[:1])


def test_float16_leaves_steps_out_and_gives_up_at_last(encoder, head, batches):
    recipe = TrainingRecipe(steps=40, learning_rate=0.01, weight_decay=0.1, warmup=2, autocast=torch.float16)
    trainer = trainer_of(encoder, head, recipe)
    before = copy.deepcopy(trainer.encoder.state_dict())
    trainer.encoder.get_parameter("gain").register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"^gradients overflow float16 at step 18 of 40"):  # the scale began at 2^16
        trained(trainer, [batches[:1]] * 40)
    assert trainer.step == 17
    assert all(torch.equal(value, before[name]) for name, value in trainer.encoder.state_dict().items())


# --- images ----------------------------------------------------------------------------------------------------------


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("size", [(28, 28), (500, 375), (40, 400), (400, 40), (96, 120), (3, 2), (1, 1)])
def test_crops_are_those_of_torchvision(size):
    whole = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = RandomResizedCrop.get_params(picture(*size), list(SCALE), list(RATIO))
        box = crop_box(*size, generator)
        assert box == expected
        whole += box[2:] == (size[1], size[0])
    assert whole < 200 or size in ((3, 2), (1, 1))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_open_clips_train_transform(mode):
    transform = image_transform(24, is_train=True, mean=MEAN, std=STD)
    for seed in range(5):
        image = picture(50, 40, mode, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = transform(image)
        pixels = torch.from_numpy(to_train_pixels(image, 24, torch.Generator().manual_seed(seed)))
        found = (pixels.permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert torch.equal(found, expected)


def samples_of(count: int, broken: int | None = None) -> Samples:
    """Images of one colour, which is their number; a crop does not change it."""

    def image(number: int) -> Image.Image:
        if number == broken:
            raise DataError(f"img{number}.png: cannot be decoded")
        return Image.new("RGB", (30, 30), (number, 0, 0))

    return Samples([number % 3 for number in range(count)], image, lambda number: f"img{number}.png")


def source_of(samples: Samples, *, epochs: int = 3, threads: int = 1, seed: str = "0/X") -> TrainingImages:
    return TrainingImages(samples, size=8, batch_size=4, accumulate=2, epochs=epochs, seed=seed, threads=threads)


def numbers(steps: Sequence[Sequence[Batch]]) -> list[list[list[int]]]:
    return [[batch.images[:, 0, 0, 0].tolist() for batch in step] for step in steps]


def test_every_image_once_an_epoch_in_a_new_order():
    source = source_of(samples_of(21))
    assert (source.steps_per_epoch, source.steps) == (3, 9)
    steps = list(source(0))
    assert [[len(batch.labels) for batch in step] for step in steps] == [[4, 4], [4, 4], [4, 1]] * 3
    orders = [[n for step in numbers(steps[i : i + 3]) for batch in step for n in batch] for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(21)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(21)]}) == 4
    for batch in (batch for step in steps for batch in step):
        assert torch.equal(batch.labels, batch.images[:, 0, 0, 0].long() % 3)
    assert numbers(list(source_of(samples_of(21), seed="1/X")(0))) != numbers(steps)


def test_images_depend_on_neither_threads_nor_where_one_begins():
    samples = samples_of(21)
    noisy = Samples(samples.labels, lambda number: picture(30, 30, seed=number), samples.name)
    whole = list(source_of(noisy)(0))
    for source, first in ((source_of(noisy, threads=3), 0), (source_of(noisy), 4), (source_of(noisy, threads=2), 8)):
        steps = list(source(first))
        assert len(steps) == 9 - first
        for step, expected in zip(steps, whole[first:], strict=True):
            for batch, other in zip(step, expected, strict=True):
                assert torch.equal(batch.images, other.images)
    again = {n: i for step in whole[:3] for b in step for n, i in zip(b.labels.tolist(), b.images, strict=True)}
    later = {n: i for step in whole[3:6] for b in step for n, i in zip(b.labels.tolist(), b.images, strict=True)}
    assert any(not torch.equal(again[n], later[n]) for n in again)


def test_a_broken_image_is_named_at_its_step():
    source = source_of(samples_of(21, broken=7))(0)
    with pytest.raises(DataError, match=r"img7\.png: cannot be decoded"):
        list(source)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_threads_end_with_the_training():
    source = source_of(samples_of(21), threads=3)(0)
    next(source)
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]
