"""Which numbers are seeds: the same everywhere, though the libraries that take them differ."""

from __future__ import annotations

from numbers import Integral

from igpt.errors import UsageError

MOST = 2**32 - 1  # of scikit-learn; torch and numpy take more


def check_seed(seed: object) -> None:
    """Raise UsageError for anything but a whole number from 0 to `MOST`.

    >>> check_seed(2**32 - 1)
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) <= MOST:
        raise UsageError(f"a seed is a whole number from 0 to {MOST}, not {seed!r}: choose another")
