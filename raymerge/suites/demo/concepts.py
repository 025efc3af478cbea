"""What the demo's world consists of: families of classes, colours, and the captions that name them."""

from dataclasses import dataclass

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.12),
    "green": (0.10, 0.68, 0.18),
    "blue": (0.15, 0.22, 0.92),
    "yellow": (0.95, 0.90, 0.12),
    "purple": (0.55, 0.12, 0.70),
    "orange": (0.98, 0.55, 0.06),
    "cyan": (0.12, 0.85, 0.90),
    "pink": (0.98, 0.60, 0.75),
    "white": (1.00, 1.00, 1.00),
    "black": (0.03, 0.03, 0.03),
}
"""Red, green and blue of every colour, 0..1."""

FLAGS: dict[str, tuple[str, tuple[str, str, str]]] = {
    "france": ("vertical", ("blue", "white", "red")),
    "italy": ("vertical", ("green", "white", "red")),
    "belgium": ("vertical", ("black", "yellow", "red")),
    "ireland": ("vertical", ("green", "white", "orange")),
    "romania": ("vertical", ("blue", "yellow", "red")),
    "germany": ("horizontal", ("black", "red", "yellow")),
    "netherlands": ("horizontal", ("red", "white", "blue")),
    "hungary": ("horizontal", ("red", "white", "green")),
    "russia": ("horizontal", ("white", "blue", "red")),
    "estonia": ("horizontal", ("blue", "black", "white")),
}
"""Direction of the three stripes, and their colours from the left or from the top."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Family:
    """Classes which differ in one respect, and the phrase that names one of them."""

    classes: tuple[str, ...]
    phrase: str

    def describe(self, class_name: str) -> str:
        return self.phrase.format(class_name)


def _family(classes: str, phrase: str) -> Family:
    return Family(tuple(classes.split()), phrase)


FAMILIES: dict[str, Family] = {
    "shape": _family("circle square triangle cross star ring diamond crescent hexagon heart", "a {} shape"),
    "digit": Family(_NUMBERS, "the digit {}"),
    "letter": Family(tuple("abcdefghijklmnopqrst"), "the letter {}"),
    "colour": Family(tuple(COLOURS), "a {} object"),
    "background": Family(tuple(COLOURS), "a {} background"),
    "pattern": _family(
        "horizontal vertical diagonal dotted checkered concentric radial wavy grid brick", "a {} pattern"
    ),
    "count": Family(_NUMBERS[1:7], "{} spots"),
    "dice": Family(_NUMBERS[1:7], "a dice showing {}"),
    "position": _family(
        "topleft top topright left centre right bottomleft bottom bottomright", "an object at {}"
    ),  # row by row
    "size": _family("tiny small medium large", "a {} blob"),
    "arrow": _family("up upright right downright down downleft left upleft", "an arrow pointing {}"),  # clockwise
    "flag": Family(tuple(FLAGS), "the flag of {}"),
    "clock": Family(_NUMBERS[1:9], "a clock at {}"),  # eighths of a turn, not real hours
    "face": _family("happy sad neutral surprised winking sleepy angry cool", "a {} face"),
    "weather": _family("sun moon cloud rain snow lightning rainbow wind", "a {} icon"),
    "suit": _family("hearts spades diamonds clubs crown anchor key flower", "a {} symbol"),
}

TEMPLATES: tuple[str, ...] = ("a photo of {}", "an image of {}", "a picture showing {}", "{}")

CONCEPTS: tuple[tuple[str, str], ...] = tuple((f, c) for f, family in FAMILIES.items() for c in family.classes)
"""Every (family, class) there is: the caption bank of pre-training, in this order."""


def caption(family: str, class_name: str, template: str) -> str:
    return template.format(FAMILIES[family].describe(class_name))
