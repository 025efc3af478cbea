"""A small world to fine-tune in: raw MNIST with marks that are easy to tell apart, and a tiny random CLIP."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raymerge.backbones import build_clip
from raymerge.checkpoints import save_head, save_safetensors
from raymerge.rehearsal.raw import Drawn, write_raw
from raymerge.suite_file import load_suite_file
from raymerge.suites.published import PublishedSuite

BACKBONE = "tiny"
SUITE_FILE = """\
name: small
any_size: true
backbones:
  tiny:
    model:
      embed_dim: 16
      vision_cfg: {{image_size: 28, layers: 2, width: 32, head_width: 16, patch_size: 7}}
      text_cfg: {{context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}}
    pretrained: {pretrained}
    quick_gelu: true
tasks: [{tasks}]
"""
"""Its MNIST, and the same images as another task."""
TWINS = "MNIST, {name: Twin, dataset: MNIST, templates: ['a drawing of {}']}"


def marks(count: int, seed: int) -> list[Drawn]:
    """Noisy grey images with a bright square, whose place is the class."""
    generator = np.random.default_rng(seed)
    drawn: list[Drawn] = []
    for i in range(count):
        pixels = generator.integers(0, 60, (28, 28), dtype=np.uint8)
        row, column = divmod(i % 10, 4)
        pixels[2 + 8 * row : 9 + 8 * row, 1 + 7 * column : 6 + 7 * column] += np.uint8(generator.integers(100, 180))
        drawn.append((Image.fromarray(pixels).convert("RGB"), i % 10))
    return drawn


def small_world(folder: Path, *, train: int = 200, tasks: str = "MNIST") -> PublishedSuite:
    """Write a suite: suite.yaml, data/, the model that has no task yet, and a head for MNIST in weights/."""
    write_raw("mnist", folder / "data", {"train": marks(train, 0), "test": marks(40, 1)})
    suite_file = folder / "suite.yaml"
    suite_file.write_text(SUITE_FILE.format(pretrained=folder / "clip.safetensors", tasks=tasks))
    suite = load_suite_file(suite_file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_clip(suite.backbones[BACKBONE])
        for parameter in model.parameters():  # values of our own, whatever open_clip starts from
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        head = 20 * torch.linalg.qr(torch.randn(16, 10)).Q.T
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_safetensors(folder / "clip.safetensors", state, {})
    save_head(suite.root / BACKBONE / "head_MNISTVal.pt", head.contiguous())
    return suite
