"""OpenAI's released checkpoints by name: where they are looked for, and how they come there.

Their sizes and sums are not published beside them. A checkpoint carries a checksum of each of its variables, which
its reader compares; a transfer must have the length that the server says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from igpt.errors import UsageError
from igpt.fetch import RemoteFile, fetch
from igpt.project import place
from igpt.shape import SIZES, ModelShape, Objective

# Source: download.py of openai/image-gpt.
ADDRESS = "https://openaipublic.blob.core.windows.net/image-gpt"
LAST_STEP = 1_000_000
POSITIONS, COLOURS = 1024, 512


@dataclass(frozen=True)
class Released:
    """One released model: its name, in how many shards its checkpoint lies, and the shape that the name promises."""

    name: str
    shards: int
    shape: ModelShape

    @property
    def prefix(self) -> Path:
        """Where its last checkpoint is looked for, without ``.index``."""
        return weights_home() / self.name / f"model.ckpt-{LAST_STEP}"

    @property
    def files(self) -> list[RemoteFile]:
        """The files of its last checkpoint, the index last: where that stands, all others do."""
        stem = self.prefix.name
        names = [*(f"{stem}.data-{k:05d}-of-{self.shards:05d}" for k in range(self.shards)), f"{stem}.index"]
        return [RemoteFile(name, (f"{ADDRESS}/checkpoints/{self.name}/{LAST_STEP}/{name}",), None, None) for name in names]


OBJECTIVES: dict[str, Objective] = {"": "autoregressive", "-bert": "bert"}
RELEASED = {
    f"{size}{ending}": Released(f"{size}{ending}", shards, ModelShape(*SIZES[size], COLOURS, POSITIONS, objective))
    for size, shards in (("igpt-s", 32), ("igpt-m", 32), ("igpt-l", 64))
    for ending, objective in OBJECTIVES.items()
}


def weights_home() -> Path:
    """The folder in which released weights are looked for: ``IGPT_WEIGHTS``, else ``~/.cache/igpt/weights``."""
    return place("IGPT_WEIGHTS", "~/.cache/igpt/weights")


def fetch_weights(model: Released) -> Path:
    """The prefix of a released checkpoint, downloaded where it is not at hand; stopped, the next call continues.

    Raises UsageError when it cannot be had, saying which files to put where.
    """
    prefix = model.prefix
    if not prefix.with_name(prefix.name + ".index").exists():
        _fetch(model.files, prefix.parent, f"the weights of {model.name}")
    return prefix


def _fetch(files: list[RemoteFile], folder: Path, what: str) -> None:
    """Download files into a folder, with a bar."""
    from tqdm import tqdm

    print(f"fetching {what} into {folder}", file=sys.stderr)
    with tqdm(unit="B", unit_scale=True, unit_divisor=1000, file=sys.stderr, disable=None, leave=False) as bar:
        for number, file in enumerate(files, start=1):
            bar.set_description(f"{number} of {len(files)}")

            def report(done: int, total: int | None) -> None:
                bar.total = total
                bar.n = done
                bar.refresh()

            try:
                fetch(file, folder, report=report)
            except UsageError as error:
                address = file.addresses[0].rpartition("/")[0]
                names = files[0].name if len(files) == 1 else f"{files[-1].name} and {files[0].name} to {files[-2].name}"
                raise UsageError(f"{what} cannot be had: {error}; or put {names} from {address}/ into {folder}") from None
