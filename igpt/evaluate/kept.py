"""Pieces of long work, each kept on disk once it is done: the same call, made again, goes on with the next one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from igpt.files import read_json, write_text

LARGEST = 2**28  # bytes of one piece; the predictions of fifty layers for five views of 10,000 images are 7 MB
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Kept:
    """Pieces by name below ``folder``, each a JSON file; ``key`` says what they are of, and those of another key count for none.

    A piece is made of dicts, lists, texts, numbers and booleans, which come back as they were, floats to the bit.
    """

    folder: Path
    key: dict[str, str]

    def get(self, name: str) -> Any | None:
        """A piece that was kept; None where there is none, or only one that is damaged or of another key."""
        try:
            found = read_json(self._path(name), most=LARGEST)
            return found["piece"] if found["key"] == self.key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self, name: str, piece: object) -> None:
        """Keep a piece, whole or not at all."""
        write_text(self._path(name), json.dumps({"key": self.key, "piece": piece}))

    def of(self, name: str, compute: Callable[[], Piece]) -> Piece:
        """A piece: as it was kept, else computed and kept."""
        found: Piece | None = self.get(name)
        if found is None:
            found = compute()
            self.keep(name, found)
        return found

    def _path(self, name: str) -> Path:
        """Where a piece lies."""
        return self.folder / f"{name}.json"
