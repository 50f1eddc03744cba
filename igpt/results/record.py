"""Records: what one stage found, as validated JSON, with the receipt that says how."""

from __future__ import annotations

import json
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igpt.errors import UsageError
from igpt.files import write_text
from igpt.text import visible

SCHEMA = 1
LIMIT = 2**26  # bytes of a file that can be a record; the largest of the book has less than one million
FIELDS = 3  # of a record's eight, with which a file claims to be one


class _Strict(BaseModel):
    """Unknown fields, infinities and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Value(_Strict):
    """One number; accuracies are fractions. ``low`` and ``high`` bound it at 95 % over the test images; those of a
    time are the least and the greatest of its rounds.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    images: int | None = None


class Receipt(_Strict):
    """How a record came to be. ``seconds`` counts every session of an interrupted run."""

    commit: str
    dirty: bool
    command: str
    notebook: str
    hardware: str
    seconds: Annotated[float, Field(ge=0)]
    finished: str  # UTC, ISO 8601
    versions: dict[str, str]


class Record(_Strict):
    """One stage's findings. ``series`` are the points of its curves, a list of rows by name."""

    schema_version: int
    stage: str
    parameters: dict[str, str | int | float | bool]
    signature: str
    parts: dict[str, str]
    values: dict[str, Value]
    series: dict[str, list[dict[str, float | int | str | bool | list[int]]]]
    receipt: Receipt


def read_record(path: Path) -> Record | None:
    """The record in a file, None when there is no file. Raises UsageError for anything else than a record."""
    try:
        content = read_whole(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({_reason(error)}): {_remedy(path)}") from None
    try:
        found = json.loads(content).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not a record ({error}): {_remedy(path)}") from None
    if found != SCHEMA:
        raise UsageError(f"{path} has record schema {repr(found)[:20]}, this version reads {SCHEMA}: {_remedy(path)}")
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is not a valid record ({place}: {first['msg']}): {_remedy(path)}") from None


def usable_record(path: Path) -> Record | None:
    """As `read_record`, for work that replaces a missing record: a damaged one is reported and counts as missing."""
    try:
        return read_record(path)
    except UsageError as error:
        tell(f"igpt: {error}; until then it counts as missing")
        return None


def claims_to_be_record(path: Path) -> bool:
    """Whether a file is meant as a record, by its name or its fields; other JSON files are skipped silently."""
    if path.name == "record.json" or ("," in path.stem and "=" in path.stem):
        return True
    try:
        content = read_whole(path)
    except (OSError, ValueError):
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # one that was cut off
        return sum(f'"{name}": '.encode() in content for name in Record.model_fields) >= FIELDS
    return isinstance(found, dict) and len(found.keys() & Record.model_fields.keys()) >= FIELDS


def read_whole(path: Path) -> bytes:
    """A file's content. Raises OSError as reading does; ValueError for what is no file, or too large for a record."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")  # a pipe, say, which would be waited for without end
    if found.st_size > LIMIT:
        raise ValueError(f"it has {found.st_size:,} bytes, more than the {LIMIT:,} of any record")
    return path.read_bytes()


def _reason(error: Exception) -> str:
    """Why a file could not be read."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _remedy(path: Path) -> str:
    """Which command writes the file again, as far as its place and its name tell."""
    if path.parent.name == "drill":
        return f"`igpt drill --profile {path.stem}` makes it anew"
    if path.stem.startswith("live,"):
        return "`igpt panel --measure` makes it anew"
    stage = path.parent.name.rpartition("-")[0] if path.name == "record.json" else path.stem  # in runs/, or published
    return f"`igpt run {stage}` makes it anew" if "," in stage else "give the JSON file of a record"


@cache  # a plan and a book read the same file more than once
def tell(sentence: str) -> None:
    """Say something once, on stderr."""
    print(visible(sentence), file=sys.stderr)


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all, in a form that diffs line by line."""
    write_text(path, json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")
