"""A user's pictures: found in folders, and read as tokens in order, several at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from igpt.data.resize import fitted
from igpt.data.workers import each
from igpt.errors import UsageError
from igpt.files import is_litter
from igpt.machine import cores
from igpt.palette import Palette
from igpt.pictures import OTHER_SUFFIXES, SUFFIXES, Resize, decoded
from igpt.progress import tell
from igpt.text import counted

AT_ONCE = 16  # pictures that a worker decodes before it hands them over
SKIP = "or leave such pictures out with --skip-broken"
Chunk: TypeAlias = tuple[NDArray[np.uint8], dict[int, str], dict[int, list[str]]]  # pixels, broken, notes
Part = Literal["train", "validation", "test"]
PARTS: dict[str, Part] = {  # by the names that tables, folders and arrays use
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NOTES = {  # kinds of pictures that a user may want to know of: one, several, and what is done
    "animated": ("animated picture", "animated pictures", "only the first frame is used"),
    "enlarged": ("small picture", "small pictures", "enlarged to the model's size"),
}


@dataclass(frozen=True)
class PictureFiles:
    """Picture files in order, their classes (empty without one), and the number of other files, which are left out.

    A class is the name of the folder in the given one, or in its folders of parts, such as ``train`` and ``test``.
    parts : the lower-case name of each picture's part, one of `PARTS`; empty without one
    is_split : whether a folder has folders of parts
    """

    paths: list[Path]
    labels: list[str]
    parts: list[str] = field(default_factory=list)
    others: int = 0
    is_split: bool = False

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def digest(self) -> str:
        """SHA-256 of names, sizes and times of change; for a file that is gone, of its name."""
        lines = hashlib.sha256()
        for path in self.paths:
            try:
                state = path.stat()
                lines.update(b"%s %d %d\n" % (os.fsencode(path), state.st_size, state.st_mtime_ns))
            except OSError:
                lines.update(b"%s\n" % os.fsencode(path))
        return lines.hexdigest()


def find_pictures(given: Sequence[Path]) -> PictureFiles:
    """The pictures in files and folders, those of a folder by name; hidden files are left out.

    Raises UsageError for a path that does not exist, a folder that cannot be listed, a link out of its folder, and if there
    are no pictures.
    """
    paths: list[Path] = []
    labels: list[str] = []
    parts: list[str] = []
    others, any_split = 0, False
    for path in given:
        if not path.is_dir():
            if not path.exists():
                raise UsageError(f"there is no file or folder {path}: name pictures, or a folder of them")
            paths.append(path)
            labels.append("")
            parts.append("")
            continue
        inside = [PARTS.get(each.name.lower()) for each in path.iterdir() if each.is_dir() and not is_litter(each.name)]
        is_split = "train" in inside or (inside != [] and None not in inside)
        any_split = any_split or is_split
        for file in _walk(path):
            if file.suffix.lower() not in SUFFIXES and file.suffix.lower() not in OTHER_SUFFIXES:
                others += 1
                continue
            paths.append(file)
            folders = file.relative_to(path).parts[:-1]
            is_part = is_split and folders != () and folders[0].lower() in PARTS
            parts.append(folders[0].lower() if is_part else "")
            labels.append(next(iter(folders[is_part:]), ""))
    if not paths:
        where = ", ".join(map(str, given))
        raise UsageError(f"there are no pictures in {where} ({counted(others, 'other file')}): give PNG, JPEG or the like")
    return PictureFiles(paths, labels, parts, others, any_split)


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, sorted by path. Raises UsageError for what cannot be listed or leads out."""

    def fail(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be listed ({error.strerror}): allow reading it, or move it away") from None

    inside = root.resolve()
    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in (*folders, *sorted(files)):
            path = Path(folder, name)
            if is_litter(name):
                continue
            try:
                leads_out = path.is_symlink() and not path.resolve().is_relative_to(inside)
            except (OSError, RuntimeError):
                raise UsageError(f"{path} is a link in a circle: remove it") from None
            if leads_out:
                raise UsageError(f"{path} is a link out of {root}: put the pictures themselves there, or remove it")
            if name not in folders:
                yield path


@dataclass(eq=False)
class PictureTokens:
    """Tokens of pictures; read ahead in several processes, so best in ascending order.

    resize, resample : see `igpt.data.resize.fitted`
    skip : whether a picture that cannot be read is black, and the reason is put into ``broken`` by index; else UsageError is
    raised
    folder : keeps ``broken`` and ``notes`` on disk, for an object of the same digest after a kill
    notes : by index, the kinds of a picture as `read_picture` tells them
    read : number of pictures that this object has read
    """

    files: PictureFiles
    palette: Palette
    side: int
    resize: Resize = "crop"
    resample: int = Image.Resampling.BICUBIC
    skip: bool = False
    folder: Path | None = None
    broken: dict[int, str] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    read: int = 0
    _next: int = 0  # the first picture of ``_chunks``
    _chunks: Generator[Chunk] | None = None
    _ready: NDArray[np.uint16] | None = None  # tokens of the pictures before ``_next``

    def __post_init__(self) -> None:
        """Read what ``folder`` keeps. Raises UsageError, without ``skip``, if a picture could not be read before."""
        if self._kept is not None and self._kept.exists():
            for line in self._kept.read_text().splitlines():
                with suppress(ValueError):  # cut by a kill
                    broken, notes = json.loads(line)
                    self.broken |= {int(index): reason for index, reason in broken.items()}
                    self.notes |= {int(index): kinds for index, kinds in notes.items()}
        if self.broken and not self.skip:
            raise UsageError(f"{self.broken[min(self.broken)]}; {SKIP}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    @property
    def positions(self) -> int:
        """Tokens per picture."""
        return self.side**2

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files' names, sizes and times, and of all that turns them into tokens."""
        parts = [self.files.digest(), self.palette.digest, str(self.side), self.resize, str(self.resample)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens uint16 (B, positions) of the pictures at ``indices``, int64 (B,).

        Raises UsageError, without ``skip``, for the first picture that cannot be read.
        """
        tokens = np.empty((len(indices), self.positions), np.uint16)
        for row, index in enumerate(np.asarray(indices).tolist()):
            if not 0 <= index < len(self):
                raise IndexError(f"there is no picture {index} of {len(self)}")
            while self._ready is None or not self._next - len(self._ready) <= index < self._next:
                self._read_on(index)
            tokens[row] = self._ready[index - self._next]
        return tokens

    @property
    def _kept(self) -> Path | None:
        """The file in ``folder``: a line of JSON for each chunk, ``broken`` and ``notes``."""
        return None if self.folder is None else self.folder / f"pictures-{self.digest[:16]}.jsonl"

    def tell(self) -> None:
        """Print on stderr what a user may want to know of the pictures read so far."""
        noted = Counter(kind for kinds in self.notes.values() for kind in kinds)
        for line in (*note_lines(noted), *skipped_lines(self.broken)):
            tell(f"igpt: {line}")

    def _read_on(self, index: int) -> None:
        """Read the next chunk, or the one from ``index`` on if that is not the next picture."""
        if index != self._next or self._chunks is None:
            self.close()
            self._next, self._chunks = index, self._chunks_from(index)
        pixels, broken, notes = next(self._chunks)
        if self._kept is not None and (broken or notes):
            with self._kept.open("a") as stream:
                stream.write(f"\n{json.dumps([broken, notes])}")  # the end of the line before may be cut
        self.broken |= broken
        self.notes |= notes
        expected = len(self) * self.positions
        self._ready = self.palette.quantize(pixels, expected=expected).reshape(len(pixels), -1)
        self._next += len(pixels)
        self.read += len(pixels)

    def close(self) -> None:
        """End the processes that read ahead; they start again where tokens are asked for."""
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = None

    def _chunks_from(self, first: int) -> Generator[Chunk]:
        """Chunks of pixels with what was noted, from a picture on."""
        starts = range(first, len(self), AT_ONCE)
        how = (self.side, self.palette.centres.shape[1], self.resize, self.resample, self.skip)
        work = ((self.files.paths[start : start + AT_ONCE], start, *how) for start in starts)
        return each(read_pixels_of, work, workers=min(cores(), len(starts)), ordered=True)


def read_picture(
    path: Path,
    *,
    side: int,
    channels: int,
    resize: Resize = "crop",
    resample: int = Image.Resampling.BICUBIC,
    background: int = 255,
    note: Callable[[str], None] = lambda kind: None,
) -> NDArray[np.uint8]:
    """An image file as uint8 (side, side, channels): upright, then fitted.

    resize, resample : see `igpt.data.resize.fitted`
    background : grey level on which transparency is composited
    note : called with a kind of picture that a user may want to know of, ``animated`` or ``enlarged``
    Raises UsageError as `igpt.pictures.decoded` does.
    """
    picture = decoded(path, background=background, note=note)
    if min(picture.size) < side:
        note("enlarged")
    return fitted(picture, side=side, channels=channels, resize=resize, resample=resample)


def read_pixels_of(paths: list[Path], start: int, side: int, channels: int, resize: Resize, resample: int, skip: bool) -> Chunk:
    """Pixels uint8 (len(paths), side, side, channels), and by index from ``start`` on, why some cannot be read, and notes."""
    pixels = np.zeros((len(paths), side, side, channels), np.uint8)
    broken: dict[int, str] = {}
    notes: dict[int, list[str]] = defaultdict(list)
    for row, path in enumerate(paths):
        note = notes[start + row].append
        try:
            pixels[row] = read_picture(path, side=side, channels=channels, resize=resize, resample=resample, note=note)
        except UsageError as error:
            if not skip:
                raise UsageError(f"{error}; {SKIP}") from None
            broken[start + row] = str(error)
            notes.pop(start + row)
    return pixels, broken, {index: kinds for index, kinds in notes.items() if kinds}


def note_lines(notes: Counter[str]) -> list[str]:
    """What was noted while pictures were read, a line for each kind."""
    return [f"{counted(notes[kind], one, many)}: {so}" for kind, (one, many, so) in NOTES.items() if notes[kind]]


def skipped_lines(broken: Mapping[int, str], *, most: int = 5) -> list[str]:
    """The number of pictures that could not be read, and the reasons of the first."""
    if not broken:
        return []
    more = [f"and {len(broken) - most:,} more"] if len(broken) > most else []
    return [f"{counted(len(broken), 'picture')} skipped:", *[broken[index] for index in sorted(broken)[:most]], *more]
