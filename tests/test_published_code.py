"""A collection that the published code's own classes have written: loaded, converted and evaluated as they do."""

from pathlib import Path

import pytest
import torch
from own_suite import CLASSES, EMBED_DIM, NAME, VISION, own_suite
from published_code import Classifier, write_collection
from torch import Tensor

from raymerge.backbones import build_image_encoder
from raymerge.checkpoints import Checkpoint, load_head
from raymerge.evaluation import Evaluator
from raymerge.preflight import check_backbone, check_expert
from raymerge.suite_files.convert import convert_suite
from raymerge.suites.published import PublishedSuite


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMERGE_HOME", str(tmp_path / "cache"))


def pixels(count: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def published_logits(classifier: Classifier, images: Tensor) -> Tensor:
    """By the published classes, on images that are normalised as CLIP's transform does."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    return classifier((images.permute(0, 3, 1, 2).float() / 255 - mean) / std)


@torch.no_grad()
def our_logits(suite: PublishedSuite, task: str, images: Tensor) -> Tensor:
    """By what raymerge reads of the suite's files."""
    backbone, expert = suite.backbones[NAME], Checkpoint(suite.expert_path(NAME, task))
    encoder = build_image_encoder(backbone, expert.shapes)
    device = torch.device("cpu")
    evaluator = Evaluator(encoder, expert, mean=backbone.mean, std=backbone.std, device=device, batch_size=4)
    features = torch.cat(list(evaluator.encode(images)))
    weight, bias = load_head(
        suite.head_path(NAME, task), num_classes=len(suite.task(task).classes), embed_dim=evaluator.embed_dim
    )
    return features / features.norm(dim=-1, keepdim=True) @ weight.T + bias


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_logits_are_those_of_the_published_code(tmp_path, quick_gelu):
    suite = own_suite(tmp_path, quick_gelu=quick_gelu)
    classifiers = write_collection(suite.root, NAME, VISION, EMBED_DIM, CLASSES, quick_gelu=quick_gelu)
    images = pixels()
    check_backbone(suite, NAME)
    expected = {task: published_logits(classifier, images) for task, classifier in classifiers.items()}
    for task in CLASSES:
        check_expert(suite, NAME, task)
        assert suite.expert_path(NAME, task).suffix == ".pt"
        torch.testing.assert_close(our_logits(suite, task, images), expected[task], atol=2e-5, rtol=0)
    convert_suite(suite, {NAME: list(CLASSES)})
    for task in CLASSES:
        assert suite.expert_path(NAME, task).suffix == suite.head_path(NAME, task).suffix == ".safetensors"
        torch.testing.assert_close(our_logits(suite, task, images), expected[task], atol=2e-5, rtol=0)


def test_the_activation_matters_more_than_the_tolerance(tmp_path):
    """So the test above would fail if the wrong one were built."""
    suite = own_suite(tmp_path, quick_gelu=False)
    classifiers = write_collection(suite.root, NAME, VISION, EMBED_DIM, {"MNIST": 10}, quick_gelu=True)
    difference = our_logits(suite, "MNIST", pixels()) - published_logits(classifiers["MNIST"], pixels())
    assert difference.abs().max() > 1e-3


def test_the_files_have_the_published_keys(tmp_path):
    suite = own_suite(tmp_path)
    write_collection(suite.root, NAME, VISION, EMBED_DIM, {"MNIST": 10})
    names = Checkpoint(suite.expert_path(NAME, "MNIST")).names
    assert {"model.positional_embedding", "model.text_projection", "model.logit_scale"} <= set(names)
    assert "model.visual.transformer.resblocks.1.attn.in_proj_weight" in names
    assert not any(name.startswith("model.transformer.") or "attn_mask" in name for name in names)
