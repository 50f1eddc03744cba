"""Records: what one stage found, as validated JSON, with the receipt that says how."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from reprlib import repr as shortly
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from igpt.errors import UsageError
from igpt.files import read_json, read_whole, write_text
from igpt.progress import tell
from igpt.text import visible

SCHEMA = 1
LIMIT = 2**24  # bytes of a file that can be a record; the largest of the book has less than one million
FIELDS = 3  # of a record's eight, with which a file claims to be one


class _Strict(BaseModel):
    """Unknown fields, infinities and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# Nothing that is measured or counted is beyond these, and sums and squares of what is within them are numbers still.
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Value(_Strict):
    """One number; accuracies are fractions. ``low`` and ``high`` bound it at 95 % over the test images; those of a
    time are the least and the greatest of its rounds.
    """

    value: Number
    unit: str
    low: Number | None = None
    high: Number | None = None
    images: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Refuse bounds that are the wrong way round: an interval of less than no width has no digits to print."""
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low, {self.low:.6g}, is above high, {self.high:.6g}")
        return self


class Receipt(_Strict):
    """How a record came to be. ``seconds`` counts every session of an interrupted run."""

    commit: str
    dirty: bool
    command: str
    notebook: str
    hardware: str
    seconds: Annotated[Number, Field(ge=0)]
    finished: str  # UTC, ISO 8601
    versions: dict[str, str]


class Record(_Strict):
    """One stage's findings. ``series`` are the points of its curves, a list of rows by name."""

    schema_version: int
    stage: str
    parameters: dict[str, str | Whole | Number | bool]
    signature: str
    parts: dict[str, str]
    values: dict[str, Value]
    series: dict[str, list[dict[str, Number | Whole | str | bool | list[Whole]]]]
    receipt: Receipt


def read_record(path: Path) -> Record | None:
    """The record in a file, None when there is no file. Raises UsageError for anything else than a record."""
    try:
        found = read_json(path, most=LIMIT)
        if not isinstance(found, dict):
            raise ValueError("it has no fields")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"{path} is not a record ({reason}): {_remedy(path)}") from None
    if (schema := found.get("schema_version")) != SCHEMA:
        raise UsageError(f"{path} has record schema {shortly(schema)}, this version reads {SCHEMA}: {_remedy(path)}")
    try:
        return Record.model_validate(found)
    except ValidationError as error:
        wrong = error.errors()
        first = next((e for e in wrong if not e["type"].endswith("_type")), wrong[0])  # of a union, the kind that it nearly was
        place = visible(".".join(map(str, first["loc"])), limit=100)
        raise UsageError(f"{path} is not a valid record ({place}: {first['msg']}): {_remedy(path)}") from None


def usable_record(path: Path) -> Record | None:
    """As `read_record`, for work that replaces a missing record: a damaged one is reported and counts as missing."""
    try:
        return read_record(path)
    except UsageError as error:
        tell_once(f"igpt: {error}; until then it counts as missing")
        return None


def claims_to_be_record(path: Path) -> bool:
    """Whether a file is meant as a record, by its name or its fields; other JSON files are skipped silently."""
    if path.name == "record.json" or ("," in path.stem and "=" in path.stem):
        return True
    try:
        found = read_json(path, most=LIMIT)
    except OSError:
        return False
    except ValueError:  # one that was cut off, say
        return _looks_like_record(path)
    return isinstance(found, dict) and len(found.keys() & Record.model_fields.keys()) >= FIELDS


def _looks_like_record(path: Path) -> bool:
    """Whether a file that is no whole JSON has the fields of a record."""
    try:
        content = read_whole(path, most=LIMIT)
    except (OSError, ValueError):
        return False
    return sum(f'"{name}": '.encode() in content for name in Record.model_fields) >= FIELDS


def _remedy(path: Path) -> str:
    """Which command writes the file again, as far as its place and its name tell."""
    if path.parent.name == "drill":
        return f"`igpt drill --profile {path.stem}` makes it anew"
    if path.stem.startswith("live,"):
        return "`igpt panel --measure` makes it anew"
    stage = path.parent.name.rpartition("-")[0] if path.name == "record.json" else path.stem  # in runs/, or published
    return f"`igpt run {stage}` makes it anew" if "," in stage else "give the JSON file of a record"


tell_once = cache(tell)  # a plan and a book read the same file more than once


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all, in a form that diffs line by line."""
    write_text(path, json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")
