"""From a decoded image to the pixels that are cached: everything of CLIP's transform before normalisation."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pixels(image: "Image", size: int) -> np.ndarray:
    """Resize the short side (bicubic, antialiased), crop the centre, then turn grey into RGB, as published.

    Args:
        image: mode RGB or L, of any size.
        size: of the square that is cut out.
    Returns:
        uint8, (size, size, 3).
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    resized = F.resize(image, size, interpolation=InterpolationMode.BICUBIC)  # type: ignore[arg-type]
    cropped = F.center_crop(resized, [size, size])
    return np.array(cropped.convert("RGB"))  # type: ignore[attr-defined]
