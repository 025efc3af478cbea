"""Contrastive pre-training of the demo's CLIP, and fine-tuning of its image tower on one task."""

import copy
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from open_clip.model import CLIP
from torch import Generator, Tensor, nn

from raymerge.suites.demo.clip import tokenize
from raymerge.suites.demo.determinism import bitwise_repeatable
from raymerge.suites.demo.muon import Muon
from raymerge.suites.demo.recipe import MEAN, STD, DemoRecipe, DemoTask, stream_seed
from raymerge.suites.demo.web import web_batch
from raymerge.training import Batch, Batches, Trainer, TrainingRecipe, decay_groups, train, warmup_times_cosine

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""

GRADIENT_NORM = 1.0
LOGIT_SCALE_LIMIT = math.log(100)
IMAGE_TO_CAPTION_WEIGHT = 0.75


def pretrain(model: CLIP, recipe: DemoRecipe, progress: Progress | None = None) -> None:
    """Train both towers in place on freshly rendered images and their captions. Equal recipe, equal bits."""
    with bitwise_repeatable():
        generator = Generator().manual_seed(stream_seed(recipe, "pre-training"))
        optimizers = _pretrain_optimizers(model, recipe)
        model.train()
        for step in range(recipe.pretrain_steps):
            _set_learning_rates(optimizers, warmup_times_cosine(step, recipe.pretrain_steps, recipe.pretrain_warmup))
            batch = web_batch(recipe.pretrain_batch, generator)
            image_features = F.normalize(model.visual(batch.images), dim=-1)
            text_features = F.normalize(model.encode_text(tokenize(batch.captions)), dim=-1)
            logits = model.logit_scale.exp() * image_features @ text_features.mT
            _descend(contrastive_loss(logits, batch.relevance), model.parameters(), optimizers)
            with torch.no_grad():
                model.logit_scale.clamp_(0.0, LOGIT_SCALE_LIMIT)
            if progress is not None:
                progress(step + 1, recipe.pretrain_steps)
        model.eval()


def contrastive_loss(
    logits: Float[Tensor, "images captions"], relevance: Float[Tensor, "images captions"]
) -> Float[Tensor, ""]:
    """Cross-entropy against soft targets in both directions: CLIP's loss where several captions fit an image.

    Args:
        logits: scaled similarities.
        relevance: how much every caption says about every image, at least 0; each image needs a relevant caption.
            Captions relevant to no image of the batch only take part in the image -> caption direction.
    """
    shown = relevance.sum(dim=0) > 0
    captions_of_image = relevance / relevance.sum(dim=1, keepdim=True)
    images_of_caption = relevance[:, shown] / relevance[:, shown].sum(dim=0)
    image_to_caption = -(captions_of_image * logits.log_softmax(dim=1)).sum(dim=1).mean()
    caption_to_image = -(images_of_caption * logits[:, shown].log_softmax(dim=0)).sum(dim=0).mean()
    return IMAGE_TO_CAPTION_WEIGHT * image_to_caption + (1 - IMAGE_TO_CAPTION_WEIGHT) * caption_to_image


def finetune(
    visual: nn.Module,
    head: Float[Tensor, "classes dim"],
    images: UInt8[Tensor, "images height width 3"],
    labels: Int64[Tensor, " images"],
    recipe: DemoRecipe,
    task: DemoTask,
    progress: Progress | None = None,
) -> nn.Module:
    """A fine-tuned copy of an image tower; the head, scaled by exp(logit scale), is frozen. Equal input, equal bits."""
    with bitwise_repeatable():
        settings = TrainingRecipe(
            steps=recipe.finetune_steps,
            learning_rate=recipe.finetune_learning_rate,
            weight_decay=recipe.finetune_weight_decay,
            warmup=recipe.finetune_warmup,
            schedule=warmup_times_cosine,
            decays_vectors=False,
            gradient_norm=GRADIENT_NORM,
        )
        trainer = Trainer(copy.deepcopy(visual), head, settings, mean=MEAN, std=STD, device=torch.device("cpu"))
        generator = Generator().manual_seed(stream_seed(recipe, task.name, "fine-tuning"))

        def batches(first_step: int) -> Batches:
            for batch in _batches(len(labels), recipe.finetune_batch, generator):
                yield [Batch(images[batch], labels[batch])]

        def on_step() -> bool:
            if progress is not None:
                progress(trainer.step, settings.steps)
            return False

        return train(trainer, batches, on_step)


def _pretrain_optimizers(model: CLIP, recipe: DemoRecipe) -> dict[torch.optim.Optimizer, float]:
    """Muon for the matrices of the blocks, AdamW for all else; each with its peak learning rate."""
    matrices = [p for name, p in model.named_parameters() if "resblocks" in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not ("resblocks" in name and p.ndim == 2)]
    muon = Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.pretrain_weight_decay)
    adamw = torch.optim.AdamW(
        decay_groups(others, recipe.pretrain_weight_decay),
        lr=recipe.other_learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    return {muon: recipe.matrix_learning_rate, adamw: recipe.other_learning_rate}


def _set_learning_rates(optimizers: dict[torch.optim.Optimizer, float], share: float) -> None:
    for optimizer, peak in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = peak * share


def _descend(loss: Tensor, parameters: Iterable[nn.Parameter], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
    for optimizer in optimizers:
        optimizer.step()


def _batches(num_images: int, batch_size: int, generator: Generator) -> Iterable[Int64[Tensor, " batch"]]:
    """Endless shuffled passes over the images, without the last, incomplete batch of a pass."""
    assert num_images >= batch_size, f"{num_images} training images are not one batch of {batch_size}"
    while True:
        order = torch.randperm(num_images, generator=generator)
        for start in range(0, num_images - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
