"""Digits and letters, as strokes on a lattice of 5 columns (0..4, left to right) and 7 rows (0..6, top to bottom).

A point is written as column and row, a stroke as points joined by lines; `|` lifts the pen.
"""

from raymerge.suites.demo.fields import Field, Point, stroke, union

HALF_WIDTH = 0.14

DIGITS = {
    "zero": "10 30 41 45 36 16 05 01 10 | 32 14",
    "one": "11 20 26 | 16 36",
    "two": "01 10 30 41 42 06 46",
    "three": "00 40 22 32 43 45 36 16 05",
    "four": "36 30 04 44",
    "five": "40 00 02 32 43 45 36 16 05",
    "six": "40 20 02 05 16 36 45 44 33 03",
    "seven": "00 40 14 16",
    "eight": "10 30 41 42 33 13 02 01 10 | 13 04 05 16 36 45 44 33",
    "nine": "06 26 44 41 30 10 01 02 13 43",
}

LETTERS = {
    "a": "06 02 20 42 46 | 04 44",
    "b": "00 06 36 45 44 33 03 | 00 30 41 42 33",
    "c": "41 30 10 01 05 16 36 45",
    "d": "00 06 26 44 42 20 00",
    "e": "40 00 06 46 | 03 33",
    "f": "40 00 06 | 03 33",
    "g": "41 30 10 01 05 16 36 45 43 23",
    "h": "00 06 | 40 46 | 03 43",
    "i": "10 30 | 20 26 | 16 36",
    "j": "20 40 | 30 35 26 16 05",
    "k": "00 06 | 40 03 46",
    "l": "00 06 46",
    "m": "06 00 22 40 46",
    "n": "06 00 46 40",
    "o": "10 30 41 45 36 16 05 01 10",
    "p": "06 00 30 41 42 33 03",
    "q": "10 30 41 45 36 16 05 01 10 | 24 46",
    "r": "06 00 30 41 42 33 03 | 23 46",
    "s": "41 30 10 01 02 13 33 44 45 36 16 05",
    "t": "00 40 | 20 26",
}


def glyph(strokes: str) -> Field:
    return union(*(stroke([_point(p) for p in line.split()], HALF_WIDTH) for line in strokes.split("|")))


def _point(lattice: str) -> Point:
    column, row = int(lattice[0]), int(lattice[1])
    return (column - 2) * 0.27, (row - 3) * 0.27


DIGIT_FIELDS = {name: glyph(strokes) for name, strokes in DIGITS.items()}
LETTER_FIELDS = {name: glyph(strokes) for name, strokes in LETTERS.items()}
