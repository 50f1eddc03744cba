"""Weights that exist already: read and checked, kept once in our own format, and told by the content of their files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UsageError
from igpt.files import file_sha256, refuse_full_disk, write_folder
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.weights.fetching import Report, at_hand, read_released
from igpt.weights.own import released_palette, save_weights
from igpt.weights.read import read_palette, read_weights, weights_files
from igpt.weights.released import released_at


@dataclass(frozen=True)
class Existing:
    """A network in evaluation mode on the CPU, its palette, the files that both were read from, and whence these are."""

    network: ImageGPT
    palette: Palette
    files: list[Path]
    source: str

    def keep(self, folder: Path) -> None:
        """Have the weights under ``folder`` in our own format, which `igpt.weights.own.load_weights` reads; whole or not at all.

        Those of a run that ended before its record are replaced: the files may have been others then.
        Raises UsageError where the disk is too full.
        """
        shutil.rmtree(folder, ignore_errors=True)
        with refuse_full_disk(folder):
            if (size := 4 * self.network.shape.parameters) > (free := shutil.disk_usage(folder.parent).free):
                raise UsageError(
                    f"{folder} needs {size:,} bytes and its disk has {free:,} free: free {size - free:,} bytes, then the same"
                    " command continues"
                )
            with write_folder(folder) as part:
                save_weights(part, self.network, self.palette)


def released_weights(model: str, objective: str, step: int, *, report: Report) -> Existing:
    """OpenAI's weights of a recipe after a step, downloaded where they are not at hand.

    report : called with the bytes that have come and those of all weights
    Raises UsageError where there are none, and as `igpt.weights.fetching.read_released` does.
    """
    named = released_at(model, objective, step)
    network = read_released(named, report=report)
    places = at_hand(named)
    source = named.address if places[0] == named.prefix else str(named.mirror)
    return Existing(network, released_palette(), [file for place in places for file in weights_files(place)], source)


def own_weights(place: Path, shape: ModelShape, name: str) -> Existing:
    """A user's weights, called ``name``. Raises UsageError as `read_weights` and `read_palette` do."""
    network = read_weights(place, shape)
    return Existing(network, read_palette(place, shape), weights_files(place), name)


def file_sums(files: Iterable[Path]) -> list[dict[str, str | int]]:
    """Name, bytes and SHA-256 of each file, as records keep them."""
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files]


def content_digest(sums: Iterable[dict[str, str | int]]) -> str:
    """SHA-256 over what `file_sums` says: the identity of a user's weights, wherever they lie."""
    lines = sorted(f"{file['sha256']}  {file['name']}\n" for file in sums)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
