"""Pixels of every kind of image file, against the transform that the published code composes of torchvision's parts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms import InterpolationMode

from raymerge.data._readers import decode
from raymerge.data.transforms import to_pixels

PUBLISHED = transforms.Compose(
    [
        transforms.Resize(224, interpolation=InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.Lambda(lambda image: image.convert("RGB")),
    ]
)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth enough not to be all overshoot, rough enough that half a pixel shows."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (max(2, height // 5), max(2, width // 5), 3), dtype=np.uint8))
    rough = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    pixels = (rough + generator.integers(-20, 21, rough.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def rgb(path: Path) -> None:
    noise(300, 260).save(path, "PNG")


def grey(path: Path) -> None:
    noise(300, 260, "L").save(path, "PNG")


def palette(path: Path) -> None:
    noise(300, 260).quantize(64).save(path, "PNG")


def palette_with_transparency(path: Path) -> None:
    noise(300, 260).quantize(64).save(path, "PNG", transparency=bytes(range(0, 256, 4)))


def palette_with_one_transparent_colour(path: Path) -> None:
    noise(300, 260).quantize(64).save(path, "PNG", transparency=3)


def one_transparent_colour(path: Path) -> None:
    noise(300, 260).save(path, "PNG", transparency=(10, 20, 30))


def alpha(path: Path) -> None:
    image = noise(300, 260, "RGBA")
    image.putalpha(noise(300, 260, "L", seed=1))
    image.save(path, "PNG")


def grey_with_alpha(path: Path) -> None:
    Image.merge("LA", [noise(300, 260, "L"), noise(300, 260, "L", seed=1)]).save(path, "PNG")


def grey_of_16_bits(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (260, 300), dtype=np.uint16)
    pixels[:, :150] //= 256  # both below and above what 8 bits hold
    Image.fromarray(pixels).save(path, "PNG")


def black_and_white(path: Path) -> None:
    noise(300, 260, "1").save(path, "PNG")


def jpeg(path: Path) -> None:
    noise(300, 260).save(path, "JPEG", quality=90)


def jpeg_of_cmyk(path: Path) -> None:
    noise(300, 260, "CMYK").save(path, "JPEG", quality=90)


def jpeg_of_grey(path: Path) -> None:
    noise(300, 260, "L").save(path, "JPEG", quality=90)


def jpeg_with_orientation(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    noise(300, 240).save(path, "JPEG", quality=90, exif=exif)


def very_wide(path: Path) -> None:
    noise(1500, 40).save(path, "PNG")


def very_tall(path: Path) -> None:
    noise(31, 1200).save(path, "PNG")


def smaller(path: Path) -> None:
    noise(50, 37).save(path, "PNG")


def as_small_as_digits(path: Path) -> None:
    noise(28, 28, "L").save(path, "PNG")


def a_single_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path, "PNG")


def of_the_size_already(path: Path) -> None:
    noise(224, 224).save(path, "PNG")


def odd_remainders(path: Path) -> None:
    noise(225, 227).save(path, "PNG")


WRITERS = [
    rgb,
    grey,
    palette,
    palette_with_transparency,
    palette_with_one_transparent_colour,
    one_transparent_colour,
    alpha,
    grey_with_alpha,
    grey_of_16_bits,
    black_and_white,
    jpeg,
    jpeg_of_cmyk,
    jpeg_of_grey,
    jpeg_with_orientation,
    very_wide,
    very_tall,
    smaller,
    as_small_as_digits,
    a_single_pixel,
    of_the_size_already,
    odd_remainders,
]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # torchvision's loader
@pytest.mark.parametrize("write", WRITERS)
def test_pixels_are_those_of_the_published_transform(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "image"
    write(path)
    ours = to_pixels(decode(path, "image"), 224)
    theirs = np.asarray(PUBLISHED(default_loader(path)))
    assert (ours.dtype, ours.shape) == (np.uint8, (224, 224, 3))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("write", WRITERS)
def test_decoding_warns_of_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "image"
    write(path)
    assert decode(path, "image").mode == "RGB"  # a warning would be an error here


@pytest.mark.parametrize("size", [(28, 28), (48, 48), (300, 260)])
def test_grey_replicated_at_the_end_equals_colour_from_the_start(size: tuple[int, int]) -> None:
    image = noise(*size, mode="L")
    pixels = to_pixels(image, 224)
    np.testing.assert_array_equal(pixels, to_pixels(image.convert("RGB"), 224))
    np.testing.assert_array_equal(pixels, np.asarray(PUBLISHED(image)))
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_orientation_tags_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    jpeg_with_orientation(path)
    image = decode(path, "image")
    assert image.size == (300, 240)  # not turned
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(opened))


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.save(path)
    assert decode(path, "image").getpixel((0, 0)) == (10, 20, 30)


def test_the_short_side_is_resized_and_the_centre_is_cut_out() -> None:
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255  # the middle third
    assert to_pixels(Image.fromarray(pixels), 4).tolist() == np.full((4, 4, 3), 255).tolist()
    upright = Image.fromarray(pixels.transpose(1, 0, 2).copy())
    assert to_pixels(upright, 4).tolist() == np.full((4, 4, 3), 255).tolist()


def test_resizing_is_bicubic_and_antialiased() -> None:
    step = np.zeros((8, 8), dtype=np.uint8)
    step[:, 4:] = 200
    enlarged = to_pixels(Image.fromarray(step), 16)[0, :, 0]
    assert enlarged.max() > 200  # it overshoots, which bilinear resizing does not
    stripes = np.tile(np.array([[0, 255]], dtype=np.uint8), (64, 32))
    reduced = to_pixels(Image.fromarray(stripes), 16)[4:-4, 4:-4, 0].astype(int)
    assert np.abs(reduced - 127.5).max() < 8  # every pixel is an average, not one that was picked
