"""A bar on stderr with rate and time left, in a terminal only: what a person sees while one command works."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm


class Bar:
    """Called with what is done and what there is in all, in ``unit``."""

    def __init__(self, name: str, unit: str) -> None:
        self._bar = tqdm(desc=name, unit=unit, file=sys.stderr, disable=None, leave=False)

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def skip(self, done: int) -> None:
        """Before the first call: what an earlier command had done, which is not of this one's rate."""
        if self._bar.total is None:
            self._bar.initial = self._bar.n = done

    def __exit__(self, *_: object) -> None:
        self._bar.close()
