"""Whether an average agrees with the published one. The two limits are here and nowhere else.

Both figures are compared as printed, in tenths of a percentage point. The paper finds common-space fractions of 0.5 to
0.9 within half a point of each other (arXiv:2502.04959, Fig. 6). A whole point lies between two of its own figures for
one model, Task Arithmetic on ViT-B-16 and 8 tasks: 75.4 in Table 1 and 76.4 in Fig. 3a, as another test split of one
dataset would explain. See docs/report.md.
"""

from dataclasses import dataclass
from typing import Literal

from raymerge.report import tenths

REPRODUCED_TENTHS = 5
CLOSE_TENTHS = 15

Verdict = Literal["reproduced", "close", "differs"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "close", "differs")
"""From the nearest to the furthest."""


@dataclass(frozen=True)
class Comparison:
    """An average beside the published one; both are fractions."""

    accuracy: float
    published: float

    @property
    def difference_tenths(self) -> int:
        """Measured minus published, in tenths of a percentage point."""
        return tenths(self.accuracy) - tenths(self.published)

    @property
    def verdict(self) -> Verdict:
        distance = abs(self.difference_tenths)
        if distance <= REPRODUCED_TENTHS:
            return "reproduced"
        return "close" if distance <= CLOSE_TENTHS else "differs"
