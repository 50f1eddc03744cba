"""Existing weights, released ones or a user's: read, checked, copied into our format, and identified by a digest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from igpt.files import file_sha256, refuse_full_disk, write_folder
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.fetching import Report, read_released
from igpt.weights.own import released_palette, save_weights
from igpt.weights.read import read_palette, read_weights, weights_files
from igpt.weights.released import at_hand, released_at


@dataclass(frozen=True)
class Existing:
    """A network in evaluation mode on the CPU, its palette, the files that both were read from, and their source."""

    network: ImageGPT
    palette: Palette
    files: list[Path]
    source: str

    def keep(self, folder: Path) -> None:
        """Write the weights into ``folder`` in our own format, atomically.

        Other weights there, left by an interrupted run, are replaced. Raises UsageError when the disk is full.
        """
        shutil.rmtree(folder, ignore_errors=True)
        with refuse_full_disk(folder), write_folder(folder) as part:
            save_weights(part, self.network, self.palette)


def released_weights(model: str, objective: str, step: int, *, report: Report) -> Existing:
    """OpenAI's weights of a recipe after a step, downloaded if they are missing.

    report : called with the bytes received and the total bytes
    Raises UsageError if there are none, and as `igpt.weights.fetching.read_released` does.
    """
    released = released_at(model, objective, step)
    network = read_released(released, report=report)
    paths = at_hand(released)
    source = released.address if paths[0] == released.prefix else str(released.mirror)
    return Existing(network, released_palette(), [file for path in paths for file in weights_files(path)], source)


def own_weights(path: Path, shape: ModelShape, name: str) -> Existing:
    """A user's weights, called ``name``. Raises UsageError as `read_weights` and `read_palette` do."""
    network = read_weights(path, shape)
    return Existing(network, read_palette(path, shape), weights_files(path), name)


def file_sums(files: Iterable[Path]) -> list[dict[str, str | int]]:
    """Name, bytes and SHA-256 of each file, as records keep them."""
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files]


def content_digest(sums: Iterable[dict[str, str | int]]) -> str:
    """SHA-256 over the result of `file_sums`, which identifies a user's weights in any folder."""
    lines = sorted(f"{file['sha256']}  {file['name']}\n" for file in sums)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
