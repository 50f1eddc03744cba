"""Records: the results of one stage as validated JSON, with the receipt of the run."""

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
LIMIT = 2**24  # maximum bytes of a record's file; the book's largest has less than a million
FIELDS = 3  # a file with this many of a record's eight field names claims to be a record


class _Strict(BaseModel):
    """Base of models that refuse unknown fields, NaN, infinity and type conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# No measured value or count exceeds these bounds, and sums and squares of numbers within them stay finite.
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]


class Value(_Strict):
    """One number; accuracies are fractions.

    ``low`` and ``high`` are the 95 % interval over test images; for a time, the shortest and the longest round.
    """

    value: Number
    unit: str
    low: Number | None = None
    high: Number | None = None
    images: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Refuse bounds in the wrong order."""
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low, {self.low:.6g}, is above high, {self.high:.6g}")
        return self


class Receipt(_Strict):
    """How a record was made. ``seconds`` includes all sessions of an interrupted run."""

    commit: str
    dirty: bool
    command: str
    notebook: str
    hardware: str
    seconds: Annotated[Number, Field(ge=0)]
    finished: str  # UTC, ISO 8601
    versions: dict[str, str]


class Record(_Strict):
    """The results of one stage. ``series`` are the points of its curves: lists of rows, by name."""

    schema_version: int
    stage: str
    parameters: dict[str, str | Whole | Number | bool]
    signature: str
    parts: dict[str, str]
    values: dict[str, Value]
    series: dict[str, list[dict[str, Number | Whole | str | bool | list[Whole]]]]
    receipt: Receipt


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is no file. Raises UsageError for a file that is not a valid record."""
    try:
        fields = read_json(path, most=LIMIT)
        if not isinstance(fields, dict):
            raise ValueError("it has no fields")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"{path} is not a record ({reason}): {_remedy(path)}") from None
    if (schema := fields.get("schema_version")) != SCHEMA:
        raise UsageError(f"{path} has record schema {shortly(schema)}, this version reads {SCHEMA}: {_remedy(path)}")
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        errors = error.errors()
        first = next((e for e in errors if not e["type"].endswith("_type")), errors[0])  # for a union, the closest type
        field = visible(".".join(map(str, first["loc"])), limit=100)
        raise UsageError(f"{path} is not a valid record ({field}: {first['msg']}): {_remedy(path)}") from None


def usable_record(path: Path) -> Record | None:
    """Read a record like `read_record`, but report a damaged one on stderr and return None, as if it were missing."""
    try:
        return read_record(path)
    except UsageError as error:
        tell_once(f"igpt: {error}; until then it counts as missing")
        return None


def claims_to_be_record(path: Path) -> bool:
    """Whether a file is meant to be a record, by its name or its field names."""
    if path.name == "record.json" or ("," in path.stem and "=" in path.stem):
        return True
    try:
        content = read_whole(path, most=LIMIT)
    except (OSError, ValueError):
        return False
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):  # truncated, for example
        return sum(f'"{name}"'.encode() in content for name in Record.model_fields) >= FIELDS
    return isinstance(fields, dict) and len(fields.keys() & Record.model_fields.keys()) >= FIELDS


def _remedy(path: Path) -> str:
    """The command that makes the file again, from its folder and name."""
    if path.parent.name == "drill":
        return f"`igpt drill --profile {path.stem}` makes it anew"
    if path.stem.startswith("live,"):
        return "`igpt panel --measure` makes it anew"
    stage = path.parent.name.rpartition("-")[0] if path.name == "record.json" else path.stem  # in runs/, or in book/records
    return f"`igpt run {stage}` makes it anew" if "," in stage else "give the JSON file of a record"


tell_once = cache(tell)  # the same file may be read several times


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically, as JSON with one item per line and sorted keys."""
    write_text(path, json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")
