"""Results of a model for each of a user's pictures, kept as they come, so that a killed command continues."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from igpt.data.folders import PictureTokens, find_pictures
from igpt.errors import UsageError
from igpt.files import refuse_full_disk, try_lock, write_text
from igpt.progress import Bar
from igpt.text import counted


def for_each_picture(
    pictures: PictureTokens,
    given: Sequence[Path],
    compute: Callable[[Tensor], list[Any]],
    *,
    work: Path,
    key: str,
    batch: int,
    device: torch.device,
) -> list[Any]:
    """``compute`` on the tokens of all pictures, int64 (B, positions) on a device, which returns a JSON value for each.

    pictures : with ``work`` as their folder; those that are skipped have no value, None
    given : the paths in which the pictures were found
    work : folder of the results so far, which the caller locks and removes
    key : identifies everything else that results depend on; results with another key are computed again
    Raises UsageError for the first picture that cannot be read, unless it may be skipped, and when files were added, removed
    or changed meanwhile.
    """
    before = pictures.files.digest()
    path = work / "results.jsonl"
    lines = _kept_lines(path, json.dumps([key, pictures.digest]))
    with path.open("a") as kept, closing(pictures), Bar("", " pictures") as bar:
        for start in range(len(lines), len(pictures), batch):
            bar(start, len(pictures))
            rows = np.arange(start, min(start + batch, len(pictures)))
            values = compute(torch.from_numpy(pictures[rows].astype(np.int64)).to(device))
            for index, value in zip(rows.tolist(), values, strict=True):
                lines.append(json.dumps(None if index in pictures.broken else value))
            kept.write("".join(f"{line}\n" for line in lines[start:]))
            kept.flush()
            bar(len(lines), len(pictures))
    check_unchanged(given, before)
    return [json.loads(line) for line in lines]


def check_unchanged(given: Sequence[Path], before: str) -> None:
    """Raise UsageError if the pictures in some paths have another digest than before."""
    if find_pictures(given).digest() != before:
        raise UsageError("pictures were added, removed or changed while they were read: run the same command again")


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Context manager: a hidden folder beside the file ``out``, for work that the same command continues.

    It is removed when the block ends, and stays when the block raises. Raises UsageError while another process writes ``out``,
    and when the disk is full.
    """
    work, lock = (out.with_name(f".{out.name}.{ending}") for ending in ("work", "lock"))
    work.mkdir(parents=True, exist_ok=True)
    held = try_lock(lock)
    if held is None:
        raise UsageError(f"another process is writing {out}: wait for it, or name another file")
    with held, refuse_full_disk(out):
        try:
            yield work
            shutil.rmtree(work)
        finally:
            lock.unlink(missing_ok=True)


def _kept_lines(path: Path, head: str) -> list[str]:
    """The results that an earlier call kept under the same first line; the file is cut after the last whole one, or begun."""
    try:
        first, *lines = path.read_text().split("\n")[:-1]  # what follows the last newline was cut
    except (OSError, ValueError):
        first, lines = "", []
    if first != head:
        write_text(path, f"{head}\n")
        return []
    os.truncate(path, sum(len(line) + 1 for line in (first, *lines)))  # JSON is ASCII
    return lines


def rate_line(count: int, seconds: float, out: Path, *, read: int | None = None) -> str:
    """The line that ends a command.

    read : pictures read in these seconds, if others were by an earlier command
    """
    read = count if read is None else read
    return f"{counted(count, 'picture')}{f', {read / max(seconds, 1e-9):,.1f}/s' if read else ''}: {out}"


def shown_name(name: str | Path) -> str:
    r"""A file's name as text; bytes that are not UTF-8 as escapes such as ``\xff``."""
    return os.fsencode(name).decode(errors="backslashreplace")
