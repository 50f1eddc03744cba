"""The range of valid seeds: the same everywhere, though libraries' ranges differ."""

from __future__ import annotations

import reprlib
from numbers import Integral

from igpt.errors import UsageError

MOST = 2**32 - 1  # scikit-learn's limit; torch and numpy accept more


def check_seed(seed: object) -> int:
    """The seed as an ``int``. Raises UsageError for anything but an integer from 0 to `MOST`.

    >>> check_seed(2**32 - 1)
    4294967295
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise UsageError(f"a seed is a whole number from 0 to {MOST}, not {reprlib.repr(seed)}: choose another")
    if not 0 <= int(seed) <= MOST:
        shown = int(seed) if abs(int(seed)) < 2**128 else "one of so many digits"
        raise UsageError(f"a seed is a whole number from 0 to {MOST}, not {shown}: choose another")
    return int(seed)
