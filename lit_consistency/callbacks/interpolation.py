"""Which models between the start and the end of a run are measured when it has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

FARTHEST = 2.0
"""Beyond the end, or behind the start, as many times the way: line scans of the loss go from -2 to 2."""


def check_between(shares: Sequence[float]) -> None:
    """See that shares of the way from start to end are possible, and not of the start or the end itself.

    Raises:
        ValueError: naming the share; also where two of them have one name, which is given to six digits.
    """
    names = set()
    for share in shares:
        if share in (0, 1):
            raise ValueError(
                f"forgetting.interpolate: {share:g}: expected a share between start and end; "
                f"{'the base is measured at step 0' if share == 0 else 'the end is measured'} anyway"
            )
        if not (math.isfinite(share) and -FARTHEST <= share <= FARTHEST):
            raise ValueError(f"forgetting.interpolate: {share}: expected a share from {-FARTHEST:g} to {FARTHEST:g}")
        if f"{share:g}" in names:
            raise ValueError(
                f"forgetting.interpolate: {share:g} stands twice: expected shares that differ in six digits"
            )
        names.add(f"{share:g}")
