"""Partial results of long work, saved to disk one by one, so that the same call resumes with the next one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from igpt.files import read_json, write_text

LARGEST = 2**28  # bytes of a piece; predictions of fifty layers for five views of 10,000 images are 7 MB
PRECISIONS = ("float32", "float16")  # of features kept on disk
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Kept:
    """Pieces by name in ``folder``, each a JSON file of dicts, lists, strings, numbers and booleans; floats to the bit.

    ``key`` identifies their inputs; pieces with a different key are recomputed.
    """

    folder: Path
    key: dict[str, str]

    def get(self, name: str) -> Any | None:
        """A saved piece; None when it is missing, damaged or has a different key."""
        try:
            content = read_json(self.folder / f"{name}.json", most=LARGEST)
            return content["piece"] if content["key"] == self.key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, name: str, piece: object) -> None:
        """Write a piece atomically."""
        write_text(self.folder / f"{name}.json", json.dumps({"key": self.key, "piece": piece}))

    def of(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """The saved piece, or else computed and saved."""
        piece: Piece | None = self.get(name)
        if piece is None:
            piece = compute()
            self.keep(name, piece)
        return piece
