"""Pre-training and fine-tuning: the loss and the optimizer by reference, and equal bits in every run."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from raymerge.suites.demo.clip import build_clip, zero_shot_head
from raymerge.suites.demo.determinism import bitwise_repeatable
from raymerge.suites.demo.muon import Muon, orthogonalise
from raymerge.suites.demo.recipe import demo_task, make_recipe
from raymerge.suites.demo.splits import task_split, to_pixels
from raymerge.suites.demo.training import contrastive_loss, finetune, pretrain
from raymerge.suites.demo.world import normalise
from raymerge.training import warmup_times_cosine

RECIPE = replace(
    make_recipe("reduced"), pretrain_steps=3, finetune_steps=3, train_images=70, pretrain_warmup=2, finetune_warmup=2
)


def pretrained(recipe=RECIPE):
    model = build_clip(recipe)
    pretrain(model, recipe)
    return model


def test_pretraining_is_repeatable_to_the_bit():
    first, second = pretrained(), pretrained()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training
    before = build_clip(RECIPE).state_dict()
    unchanged = [name for name, value in first.state_dict().items() if torch.equal(value, before[name])]
    assert not unchanged, "both towers are trained, all of them"


def test_pretraining_depends_on_the_seed():
    same_start = build_clip(RECIPE)
    pretrain(same_start, replace(RECIPE, seed=1))
    assert not torch.equal(same_start.visual.proj, pretrained().visual.proj)


def test_finetuning_is_repeatable_to_the_bit_and_leaves_its_input_alone():
    model, task = build_clip(RECIPE), demo_task("Digits")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head, (images, labels) = zero_shot_head(model, task), task_split(RECIPE, task, "train")
    kept = head.clone()
    first, second = (finetune(model.visual, head, images, labels, RECIPE, task) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert not torch.equal(value, model.visual.state_dict()[name]), "the whole tower is trained"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(head, kept)
    assert not first.training


def test_finetuning_learns_its_task():
    recipe = replace(RECIPE, finetune_steps=60, finetune_warmup=5, train_images=256)
    model, task = build_clip(recipe), demo_task("Backgrounds")
    head, (images, labels) = zero_shot_head(model, task), task_split(recipe, task, "train")
    held_out, answers = task_split(replace(recipe, val_images=100), task, "val")

    def accuracy(visual):
        with torch.no_grad():
            return ((visual(normalise(to_pixels(held_out))) @ head.mT).argmax(dim=1) == answers).float().mean()

    assert accuracy(finetune(model.visual, head, images, labels, recipe, task)) > accuracy(model.visual.eval()) + 0.2


def test_progress_counts_every_step():
    seen = []
    model = build_clip(RECIPE)
    pretrain(model, RECIPE, progress=lambda done, steps: seen.append((done, steps)))
    task = demo_task("Shapes")
    finetune(
        model.visual,
        zero_shot_head(model, task),
        *task_split(RECIPE, task, "train"),
        RECIPE,
        task,
        progress=lambda done, steps: seen.append((done, steps)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_loss_with_one_caption_per_image_is_that_of_clip():
    logits = torch.randn(5, 5, generator=Generator().manual_seed(0))
    target = torch.arange(5)
    expected = 0.75 * F.cross_entropy(logits, target) + 0.25 * F.cross_entropy(logits.mT, target)
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(5)), expected)


def test_loss_by_hand():
    # one image, captions of relevance 3, 1 and 0; the image is every shown caption's only one, so only the first
    # direction costs: softmax of logits ln(2), ln(1), ln(1) is 1/2, 1/4, 1/4
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    loss = contrastive_loss(logits, torch.tensor([[3.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx(
        0.75 * (0.75 * torch.log(torch.tensor(2.0)) + 0.25 * torch.log(torch.tensor(4.0)))
    )


def test_schedule_by_hand():
    assert [warmup_times_cosine(step, 8, 2) for step in (0, 1, 4)] == pytest.approx(
        [0.5, 0.5 * (1 + 0.5**0.5 * 1.30656), 0.5], rel=1e-3
    )
    assert warmup_times_cosine(7, 8, 2) < 0.05


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalise_keeps_singular_vectors_and_flattens_values(shape):
    matrix = torch.randn(*shape, generator=Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ orthogonalise(matrix) @ vh.mT
    flattened = inner.diagonal()
    torch.testing.assert_close(inner, flattened.diag(), atol=1e-9, rtol=0.0)
    # the same polynomial on the singular values alone
    x = s / s.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(flattened, x)
    assert ((flattened > 0.6) & (flattened < 1.3)).all()


def test_muon_steps_by_hand():
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    gradients = [torch.tensor([[0.5, 0.0], [0.0, -0.5]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])]
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    expected, momentum = weight.detach().clone(), torch.zeros(2, 2)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = orthogonalise(0.05 * gradient + 0.95 * momentum)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 2**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected)


def test_determinism_is_restored():
    def state():
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    def fail():
        with bitwise_repeatable():
            assert state() == (1, True, False)
            raise RuntimeError("inside")

    before = state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert state() == before
