"""A user's own data sets: registered by name, checked, split and read.

``igpt data add NAME SOURCE`` writes two files into ``own/`` of the data home: ``NAME.json``, the declaration, and a table of
the pictures with their SHA-256. The pictures stay where they are. The declaration's digest is part of signatures, and each
picture is compared with its SHA-256 when it is read, so that changed pictures never give results under the old digest.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from igpt.data.dataset import DataSet, Official, data_home
from igpt.data.folders import AT_ONCE, PARTS, SKIP, Part, find_pictures, note_lines, skipped_lines
from igpt.data.npz import LONGEST, labelled_arrays
from igpt.data.resize import CROP, FILTERS, fitted
from igpt.data.workers import each
from igpt.errors import UsageError
from igpt.files import cannot_read, read_json, read_whole, wait_for_lock, write_rows, write_text
from igpt.machine import cores
from igpt.pictures import Resize, decoded, from_array
from igpt.text import counted, listed, visible

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
NUMBER = re.compile(r"[0-9]{1,9}")
TEST, VALIDATION = 0.2, 0.1  # of a class's pictures, and of those that are not for test, where the source gives no such part
LARGEST = 2**30  # bytes of a picture's file
LARGEST_TABLE = 2**28  # bytes of a table of pictures
IN_MEMORY = 50_000  # pictures; reduced to 64 x 64 pixels they take 0.6 GB
COLUMNS = {  # of a table, by the names that are understood
    **dict.fromkeys(("file", "path", "filename", "image"), "file"),
    **dict.fromkeys(("label", "class", "category"), "label"),
    **dict.fromkeys(("split", "part", "set"), "split"),
}
Report = Callable[[int, int], None]  # pictures done, total


class Entry(NamedTuple):
    """One picture: its path below the source's folder, or ``ARRAY:INDEX`` in an ``.npz`` file; class; part; SHA-256."""

    file: str
    label: str
    part: Part | None  # None until it is split
    sha256: str = ""


class Declared(BaseModel):
    """A registered data set; ``digest`` is over the pictures' contents, classes and parts, and ``resize``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1] = 1
    source: str  # absolute path of the folder, the table or the .npz file
    classes: list[str] = Field(min_length=2)
    train: int = Field(gt=0)
    validation: int = Field(gt=0)
    test: int = Field(gt=0)
    resize: Resize
    split: str  # how the parts were made
    digest: str = Field(pattern="[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class OwnPictures:
    """Pictures in order, to be read one by one; small enough to send to other processes.

    arrays : the pictures of an ``.npz`` file, uint8 (N, H, W) or (N, H, W, channels); else they are files below ``folder``
    resize : see `igpt.data.resize.fitted`
    """

    name: str
    folder: Path
    files: list[str]
    sha256: list[str]
    resize: Resize
    arrays: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def take(self, indices: NDArray[np.int64]) -> OwnPictures:
        """The pictures at ``indices``, in that order."""
        files, sums = ([column[index] for index in indices.tolist()] for column in (self.files, self.sha256))
        return replace(self, files=files, sha256=sums, arrays=None if self.arrays is None else self.arrays[indices])

    def picture(self, index: int) -> Image.Image:
        """One picture, upright, as RGB. Raises UsageError when it cannot be read, or has changed since it was added."""
        path = self.folder / self.files[index]
        if self.arrays is None:
            content = _content(path)
            self._check(index, hashlib.sha256(content).hexdigest())
            return decoded(path, content)
        self._check(index, _array_sha256(self.arrays[index]))
        return from_array(self.arrays[index])

    def _check(self, index: int, found: str) -> None:
        """Raise UsageError when a picture's SHA-256 is another than when it was added."""
        if found != self.sha256[index]:
            path = visible(str(self.folder / self.files[index]))
            raise UsageError(f"{path} has changed since {self.name} was added: run `igpt data add` again")

    def pixels(self, index: int, *, side: int, channels: int, filter: str = "bicubic") -> NDArray[np.uint8]:
        """One picture, uint8 (side, side, channels); raises as `picture` does."""
        return fitted(self.picture(index), side=side, channels=channels, resize=self.resize, resample=FILTERS[filter])

    def all_pixels(self, *, side: int, channels: int) -> NDArray[np.uint8]:
        """All pictures, uint8 (N, side, side, channels), read in several processes; raises as `picture` does."""
        starts = range(0, len(self), AT_ONCE)
        chunks = (np.arange(start, min(start + AT_ONCE, len(self))) for start in starts)
        work = ((self.take(chunk), side, channels) for chunk in chunks)
        return np.concatenate(list(each(_chunk_pixels, work, workers=min(cores(), len(starts)), ordered=True)))


def _chunk_pixels(pictures: OwnPictures, side: int, channels: int) -> NDArray[np.uint8]:
    """Some pictures, uint8 (N, side, side, channels)."""
    return np.stack([pictures.pixels(index, side=side, channels=channels) for index in range(len(pictures))])


def own_card(name: str) -> DataSet | None:
    """The declaration of a registered data set; None if there is none of this name. Raises UsageError if it is damaged."""
    declared = _declared(name)
    if declared is None:
        return None
    return DataSet(
        name=name,
        title=name,
        short=name,
        terms=f"your own pictures, {declared.source}",
        train=declared.train + declared.validation,
        test=declared.test,
        classes=len(declared.classes),
        height=CROP,
        channels=0,
        held_out=declared.validation / (declared.train + declared.validation),
        names=lambda card: declared.classes,
        read=read_own,
        cropped=True,
        resize=declared.resize,
        in_memory=declared.train + declared.validation + declared.test <= IN_MEMORY,
        content=declared.digest,
        subfolder=declared.source,
    )


def own_names() -> list[str]:
    """The names of the registered data sets."""
    return sorted(path.stem for path in (data_home() / "own").glob("*.json") if NAME.fullmatch(path.stem))


def read_own(card: DataSet, split: Official) -> tuple[OwnPictures, NDArray[np.int64]]:
    """The pictures of a part, and their labels, int64 (N,); validation pictures are the last of train.

    Raises UsageError when the table is damaged, and when an ``.npz`` file has changed since it was added.
    """
    declared = _declared(card.name)
    assert declared is not None
    entries = _read_table(card.name, declared)
    wanted = ("test",) if split == "test" else ("train", "validation")
    chosen = [entry for part in wanted for entry in entries if entry.part == part]
    label_of = {label: index for index, label in enumerate(declared.classes)}
    labels = np.array([label_of[entry.label] for entry in chosen], np.int64)
    source, arrays = Path(declared.source), None
    if _is_arrays(source):
        images = labelled_arrays(source)
        places = [(array, int(index)) for array, _, index in (entry.file.partition(":") for entry in chosen)]
        here = [images[array][1][index] if index < len(images.get(array, ("", ()))[1]) else None for array, index in places]
        if here != [entry.label for entry in chosen]:
            raise UsageError(f"{source} has changed since {card.name} was added: run `igpt data add` again")
        try:
            arrays = np.stack([images[array][0][index] for array, index in places])
        except ValueError:
            raise UsageError(f"{source} has parts of images that differ in height, width or channels: make them alike") from None
    folder = source if source.is_dir() else source.parent
    files, sums = [entry.file for entry in chosen], [entry.sha256 for entry in chosen]
    return OwnPictures(card.name, folder, files, sums, declared.resize, arrays), labels


def add_own(
    name: str,
    source: Path,
    *,
    resize: Resize = "crop",
    skip: bool = False,
    report: Report = lambda done, total: None,
) -> list[str]:
    """Register the pictures of a source under a name; the lines that say what was found.

    source : a folder of ``train/CLASS/`` and ``test/CLASS/`` (or ``val/CLASS/``), or of ``CLASS/``; a ``.csv`` file with
    the columns file and label, and perhaps split; or an ``.npz`` file, see `igpt.data.npz.labelled_arrays`
    resize : see `igpt.data.resize.fitted`
    skip : whether to leave out pictures that cannot be read

    Each picture is read once, and its SHA-256 is taken; after a kill the same call continues. Without a test part, a fifth
    of each class becomes one, and without a validation part a tenth of the rest: the first pictures in the order of their
    SHA-256, so that equal pictures of a class are in one part. A set of this name is replaced once the new one is complete.
    Raises UsageError for another source, an invalid name, and a class with too few pictures.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a data set: take at most 40 small letters, digits, - and _, and no - or _ first"
        )
    source = source.absolute()
    if str(source).encode(errors="replace") != str(source).encode(errors="surrogateescape"):
        raise UsageError(f"{visible(str(source))} has a name that is not UTF-8: rename it")
    (data_home() / "own").mkdir(parents=True, exist_ok=True)
    with wait_for_lock(_file(name, "lock"), f"{name} is being added by another process"):
        entries, others = _found(source)
        examined, broken, notes = _examined(name, source, entries, skip=skip, report=report)
        entries, how = _split(source, examined)
        classes = _in_order({entry.label for entry in entries})
        _check_parts(source, entries, classes)
        signed = [resize, classes, *([entry.sha256, entry.label, entry.part] for entry in entries)]
        digest = hashlib.sha256(json.dumps(signed).encode()).hexdigest()
        counts = Counter(entry.part for entry in entries)
        declared = Declared(
            source=str(source),
            classes=classes,
            train=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            resize=resize,
            split=how,
            digest=digest,
        )
        try:
            before = _declared(name)
        except UsageError:  # a damaged declaration is replaced
            before = None
        write_rows(_table(name, declared), [Entry._fields, *entries])
        write_text(_file(name), json.dumps(declared.model_dump(), indent=1) + "\n")
        for old in (data_home() / "own").glob(f"{name}-*.csv"):
            if re.fullmatch(rf"{name}-[0-9a-f]{{12}}", old.stem) and old != _table(name, declared):
                old.unlink()
        _file(name, "progress").unlink(missing_ok=True)
    return [
        *_summary(name, declared, entries, before),
        *([f"{counted(others, 'other file')} left out"] if others else []),
        *note_lines(notes),
        *skipped_lines(broken),
    ]


def _file(name: str, ending: str = "") -> Path:
    """The declaration of a name, or a hidden file beside it."""
    return data_home() / "own" / (f".{name}.{ending}" if ending else f"{name}.json")


def _table(name: str, declared: Declared) -> Path:
    """The table of a data set's pictures."""
    return data_home() / "own" / f"{name}-{declared.digest[:12]}.csv"


def _declared(name: str) -> Declared | None:
    """The declaration of a name; None if there is none. Raises UsageError if it is damaged."""
    if not NAME.fullmatch(name):
        return None
    path = _file(name)
    try:
        state = path.stat()
    except OSError:
        return None
    return _read_declared(path, (state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def _read_declared(path: Path, state: tuple[int, ...]) -> Declared:
    """A declaration, read once for each state of its file."""
    try:
        return Declared.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, advice="run `igpt data add` again") from None


def _read_table(name: str, declared: Declared) -> list[Entry]:
    """The table that `add_own` wrote. Raises UsageError when it is missing or damaged."""
    path = _table(name, declared)
    try:
        text = read_whole(path, most=LARGEST_TABLE).decode(errors="surrogateescape")
        _, *rows = csv.reader(io.StringIO(text, newline=""))
        entries = [Entry(*row) for row in rows]  # type: ignore[arg-type]
        counts = {part: sum(entry.part == part for entry in entries) for part in ("train", "validation", "test")}
        if counts != {part: getattr(declared, part) for part in counts} or {e.label for e in entries} != set(declared.classes):
            raise ValueError("it holds other pictures than were added")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise cannot_read(path, error, advice="run `igpt data add` again") from None
    return entries


def _array_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of a picture in memory: of its shape and its pixels."""
    return hashlib.sha256(f"{pixels.shape}\n".encode() + pixels.tobytes()).hexdigest()


def _content(path: Path, *, advice: str = "put it back, or run `igpt data add` again") -> bytes:
    """A file's bytes. Raises UsageError, with the next step, when it cannot be read."""
    try:
        return read_whole(path, most=LARGEST)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{visible(str(path))} cannot be read ({reason}): {advice}") from None


def _is_arrays(source: Path) -> bool:
    """Whether a source is an ``.npz`` file."""
    return source.suffix.lower() == ".npz" and not source.is_dir()


def _found(source: Path) -> tuple[list[Entry], int]:
    """The pictures of a source with their classes, and the number of files left out."""
    if source.is_dir():
        return _in_folder(source)
    if not source.exists():
        raise UsageError(f"there is no {source}: give a folder of pictures, a .csv or an .npz file")
    if _is_arrays(source):
        return [
            Entry(f"{array}:{index}", label, PARTS.get(part), _array_sha256(images[index]))
            for array, (images, labels, part) in labelled_arrays(source).items()
            for index, label in enumerate(labels)
        ], 0
    if source.suffix.lower() == ".csv":
        return _in_table(source), 0
    raise UsageError(f"{source} is neither a folder nor a .csv or .npz file: give one of these")


def _in_folder(source: Path) -> tuple[list[Entry], int]:
    """The pictures of a folder, by the folders of their classes, and perhaps of their parts."""
    found = find_pictures([source])
    entries, others = [], found.others
    for path, label, part in zip(found.paths, found.labels, found.parts, strict=True):
        file = path.relative_to(source)
        if found.is_split and not part:
            others += 1
        elif not label:
            raise UsageError(f"{visible(str(path))} is in no class: put each picture into a folder named like its class")
        elif len(label) > LONGEST:
            raise UsageError(f"{source} has a class of {len(label):,} characters: shorten the name to at most {LONGEST}")
        else:
            entries.append(Entry(os.fspath(file), label, PARTS[part] if part else None))
    return entries, others


def _in_table(source: Path) -> list[Entry]:
    """The pictures that a table of files and labels names."""
    text = ""
    try:
        text = read_whole(source, most=LARGEST_TABLE).decode("utf-8-sig", errors="surrogateescape")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error if text.strip() else "it is empty"
        raise UsageError(f"{source} is not a table ({reason}): write a row for each picture, of file and label") from None
    columns = [COLUMNS.get(column.strip().lower(), column) for column in header]
    if not {"file", "label"} <= set(columns) or len(set(columns)) < len(columns):
        raise UsageError(
            f"the first line of {source} is {visible(first.strip(), limit=80)!r}: it must name the columns file and label,"
            " each once, and may name split"
        )
    inside, entries, seen = source.parent.resolve(), [], set()
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) > len(columns):
            raise UsageError(
                f"{source}, row {number}, has {len(row)} fields, the first line {len(columns)}: quote names with commas"
            )
        values = dict(zip(columns, row, strict=False))
        file, label, split = (values.get(column, "").strip() for column in ("file", "label", "split"))
        place = f"{source}, row {number}"
        if not file or not label:
            raise UsageError(f"{place}, has no {'label' if file else 'file'}: add it, or remove the row")
        if "split" in columns and split.lower() not in PARTS:
            raise UsageError(f"{place}, has the split {visible(split, limit=40)!r}: write train, validation or test")
        path = source.parent / file
        try:
            outside = not path.resolve().is_relative_to(inside)
        except (OSError, ValueError, RuntimeError) as error:  # names with NUL or links in a circle
            raise UsageError(f"{place}, names no file ({error}): correct it") from None
        if outside:
            raise UsageError(f"{place}, names {visible(file, limit=120)}, which is not below {source.parent}: move both together")
        if file in seen:
            raise UsageError(f"{place}, names {visible(file, limit=120)} again: keep one of the rows")
        seen.add(file)
        if len(label) > LONGEST:
            raise UsageError(f"{place}, has a label of {len(label):,} characters: shorten it to at most {LONGEST}")
        entries.append(Entry(file, label, PARTS[split.lower()] if "split" in columns else None))
    if not entries:
        raise UsageError(f"{source} names no pictures: add a row for each, of file and label")
    return entries


def _examined(
    name: str, source: Path, entries: list[Entry], *, skip: bool, report: Report
) -> tuple[list[Entry], dict[int, str], Counter[str]]:
    """The readable pictures with their SHA-256, the reasons of the others by index, and what was noted.

    Results are kept in a hidden file, from which a killed call continues.
    """
    if _is_arrays(source):  # whole already
        return entries, {}, Counter()
    folder = source if source.is_dir() else source.parent
    paths = [folder / entry.file for entry in entries]
    states = [_state(path) for path in paths]
    done = _progress(name, states)
    results = [done.get(state) for state in states]
    todo = [index for index, result in enumerate(results) if result is None]
    finished = len(paths) - len(todo)
    report(finished, len(paths))
    chunks = [todo[start : start + AT_ONCE] for start in range(0, len(todo), AT_ONCE)]
    work = (([paths[index] for index in chunk],) for chunk in chunks)
    with _file(name, "progress").open("a") as kept:
        for chunk, examined in zip(chunks, each(_examine, work, workers=min(cores(), len(chunks)), ordered=True), strict=True):
            for index, result in zip(chunk, examined, strict=True):
                results[index] = result
                kept.write(json.dumps([states[index], result]) + "\n")
            kept.flush()
            finished += len(chunk)
            report(finished, len(paths))
    readable, broken, notes = [], {}, Counter[str]()
    for index, (entry, (sha, error, kinds)) in enumerate(zip(entries, filter(None, results), strict=True)):
        if error and not skip:
            more = sum(bool(other[1]) for other in results if other) - 1
            raise UsageError(f"{error}{f' (and {more:,} more)' if more else ''}; {SKIP}")
        if error:
            broken[index] = error
        else:
            readable.append(entry._replace(sha256=sha))
            notes.update(kinds)
    return readable, broken, notes


Examined = tuple[str, str, list[str]]  # SHA-256, the error if it cannot be read, and kinds of `igpt.data.folders.NOTES`


def _examine(paths: list[Path]) -> list[Examined]:
    """Read pictures whole."""
    results: list[Examined] = []
    for path in paths:
        kinds: list[str] = []
        try:
            content = _content(path, advice="name a file that you may read")
            decoded(path, content, note=kinds.append)
            results.append((hashlib.sha256(content).hexdigest(), "", kinds))
        except UsageError as error:
            results.append(("", str(error), []))
    return results


def _state(path: Path) -> str:
    """Path, size and time of change of a file as text; without the latter for a file that is gone."""
    try:
        state = path.stat()
    except OSError:
        return f"{path}"
    return f"{state.st_size} {state.st_mtime_ns} {path}"


def _progress(name: str, states: list[str]) -> dict[str, Examined]:
    """Results that an earlier, killed call kept, by the states of the files; an incomplete last line is dropped."""
    try:
        lines = _file(name, "progress").read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    wanted, done = set(states), {}
    for line in lines:
        try:
            state, (sha, error, kinds) = json.loads(line)
        except (ValueError, TypeError):
            continue
        if state in wanted and not error:  # a picture that could not be read may be readable now
            done[state] = (sha, error, kinds)
    return done


def _split(source: Path, entries: list[Entry]) -> tuple[list[Entry], str]:
    """The entries with their parts, in order: by part, then by SHA-256; and how the parts were made, in words."""
    given = {entry.part for entry in entries}
    if "test" not in given and "validation" in given and "train" in given:  # as torchvision's folders have it
        entries = [entry._replace(part="test") if entry.part == "validation" else entry for entry in entries]
        made = ["test as given (val)"]
    elif "test" in given:
        made = ["test as given"]
    else:
        entries = _taken(entries, "test", TEST)
        made = ["test a fifth of each class by SHA-256"]
    if not any(entry.part == "validation" for entry in entries):
        entries = _taken(entries, "validation", VALIDATION)
        made.append("validation a tenth of the rest by SHA-256")
    else:
        made.append("validation as given")
    entries = [entry._replace(part=entry.part or "train") for entry in entries]
    order: dict[str | None, int] = {"train": 0, "validation": 1, "test": 2}
    return sorted(entries, key=lambda entry: (order[entry.part], entry.sha256, entry.label, entry.file)), ", ".join(made)


def _taken(entries: list[Entry], part: Part, fraction: float) -> list[Entry]:
    """The entries with a fraction of each class's training pictures, at least one, moved to ``part``; equal ones together."""
    of_class: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.part in (None, "train"):
            of_class[entry.label].append(entry)
    moved: set[tuple[str, str]] = set()
    for label, members in of_class.items():
        left = max(round(fraction * len(members)), 1)
        for sha, count in sorted(Counter(member.sha256 for member in members).items()):
            if left > 0:
                moved.add((label, sha))
                left -= count
    can = (None, "train")
    return [e._replace(part=part) if e.part in can and (e.label, e.sha256) in moved else e for e in entries]


def _check_parts(source: Path, entries: list[Entry], classes: list[str]) -> None:
    """Raise UsageError unless there are two classes, each with pictures for training, and pictures in every part."""
    if len(classes) < 2:
        raise UsageError(f"{source} has one class, {listed(classes, most=1)}: at least two are needed to tell apart")
    trained = {entry.label for entry in entries if entry.part == "train"}
    counts = Counter(entry.label for entry in entries)
    for label in classes:
        if label not in trained:
            raise UsageError(
                f"the class {visible(label, limit=60)!r} of {source} has {counted(counts[label], 'picture')} and none to train"
                " on: each class needs at least three different ones, for training, validation and test"
            )
    for part in ("train", "validation", "test"):
        if not any(entry.part == part for entry in entries):
            raise UsageError(f"{source} has no pictures for {part}: add some")


def _in_order(labels: set[str]) -> list[str]:
    """Classes in order: as numbers if all are, else as text."""
    return sorted(labels, key=lambda label: (int(label), label)) if all(map(NUMBER.fullmatch, labels)) else sorted(labels)


def _summary(name: str, declared: Declared, entries: list[Entry], before: Declared | None) -> list[str]:
    """What was registered, in lines."""
    counts = Counter(entry.label for entry in entries)
    classes = listed([f"{visible(label, limit=40)} {counts[label]:,}" for label in declared.classes], most=10)
    lines = [
        f"{name}: {len(entries):,} pictures of {len(declared.classes):,} classes ({classes})",
        f"train {declared.train:,}, validation {declared.validation:,}, test {declared.test:,}; {declared.split}",
    ]
    parts: dict[str, set[object]] = defaultdict(set)
    labels: dict[str, set[object]] = defaultdict(set)
    for entry in entries:
        parts[entry.sha256].add(entry.part)
        labels[entry.sha256].add(entry.label)
    if leaked := sum("test" in found and len(found) > 1 for found in parts.values()):
        lines.append(f"{counted(leaked, 'picture')} in test and in train too, which makes the test too easy")
    if doubtful := sum(len(found) > 1 for found in labels.values()):
        lines.append(f"{counted(doubtful, 'picture')} in more than one class")
    if before is not None:
        same = before.digest == declared.digest
        lines.append("the same pictures as before" if same else "other pictures than before: earlier results are stale")
    return lines
