"""Records: what one stage found, as validated JSON, with the receipt that says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igpt.errors import UsageError
from igpt.files import write_text

SCHEMA = 1


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
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    stage = path.parent.name.rpartition("-")[0] if path.name == "record.json" else path.stem  # in runs/, or published
    remedy = f"delete it and run `igpt run {stage}`"
    try:
        found = json.loads(content).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not a record ({error}): {remedy}") from None
    if found != SCHEMA:
        raise UsageError(f"{path} has record schema {found!r}, this version reads {SCHEMA}: {remedy}")
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path} is not a valid record ({place}: {first['msg']}): {remedy}") from None


def write_record(path: Path, record: Record) -> None:
    """Write a record, whole or not at all, in a form that diffs line by line."""
    write_text(path, json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")
