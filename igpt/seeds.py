"""Valid seeds: the same range everywhere, though libraries differ in theirs."""

from __future__ import annotations

import reprlib
from numbers import Integral

from igpt.errors import UsageError

MOST = 2**32 - 1  # of scikit-learn; torch and numpy take more


def check_seed(seed: object) -> int:
    """The seed as Python's own integer. Raises UsageError for anything but a whole number from 0 to `MOST`.

    >>> check_seed(2**32 - 1)
    4294967295
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise UsageError(f"a seed is a whole number from 0 to {MOST}, not {reprlib.repr(seed)}: choose another")
    if not 0 <= int(seed) <= MOST:
        found = int(seed) if abs(int(seed)) < 2**128 else "one of so many digits"
        raise UsageError(f"a seed is a whole number from 0 to {MOST}, not {found}: choose another")
    return int(seed)
