"""Whether a record agrees with itself. Nothing is computed again: a record that was invented with care passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from igpt.companion.results.record import Record, Value
from igpt.data import DATASETS
from igpt.measure import wilson

PARTS = ("fraction", "of the depth")  # units of what is a part of one
WHOLE = ("parameters", "features", "epochs", "steps")  # and of what is counted
CLOSE = 1e-6  # that two ways to the same number may differ by
AHEAD = timedelta(hours=1)  # that another machine's clock may be ahead


def doubts_of_stage(record: Record) -> list[str]:
    """Where parameters, parts and receipt do not belong to one run of the record's stage."""
    signed = {name.removeprefix("parameter "): text for name, text in record.parts.items() if name.startswith("parameter ")}
    given = {name: json.dumps(value) for name, value in record.parameters.items()}
    doubts = [
        f"its parameter {name} is {given.get(name, 'absent')}, and its signature covers {signed.get(name, 'none')}"
        for name in sorted(signed.keys() | given.keys())
        if signed.get(name) != given.get(name)
    ]
    receipt = record.receipt
    notebook, command = f"notebooks/{record.stage.partition(',')[0]}.ipynb", f"igpt run {record.stage}"
    if receipt.notebook.removesuffix(", run by hand") != notebook:
        doubts.append(f"its notebook is {receipt.notebook}, and its stage's is {notebook}")
    if receipt.command != command:
        doubts.append(f"its command is {receipt.command!r}, and its stage's is {command!r}")
    return [*doubts, *_doubts_of_time(receipt.finished), *_doubts_of_versions(record)]


def doubts_of_values(record: Record) -> list[str]:
    """Where values do not fit their units, their intervals or the data set, and points of series their intervals."""
    doubts = [doubt for name, value in record.values.items() for doubt in _doubts_of_value(name, value, record)]
    for name, rows in record.series.items():
        for place, row in enumerate(rows):
            value = row.get("accuracy", row.get("value"))
            if "low" in row and "high" in row and not _between(row["low"], value, row["high"]):
                doubts.append(f"row {place} of its series {name} lies outside of its interval")
    return doubts


def _doubts_of_time(finished: str) -> Iterator[str]:
    """Whether a record was finished at a time that has been."""
    try:
        when = datetime.fromisoformat(finished)
    except ValueError:
        yield f"it was finished at {finished!r}, which is not an ISO 8601 time"
        return
    if when.utcoffset() != timedelta(0):
        yield f"it was finished at {finished}, which is not in UTC"
    elif when - datetime.now(UTC) > AHEAD:
        yield f"it was finished at {finished}, which is in the future"


def _doubts_of_versions(record: Record) -> Iterator[str]:
    """Whether the receipt's versions are of the majors that were signed."""
    for name, found in record.receipt.versions.items():
        signed = record.parts.get(f"library {name}")
        if signed is not None and found.partition(".")[0] != signed:
            yield f"its receipt has {name} {found}, and its signature covers {name} {signed}"


def _doubts_of_value(name: str, value: Value, record: Record) -> Iterator[str]:
    """What is wrong with one value."""
    if value.value < 0:
        yield f"{name} is {value.value:.6g}, below zero"
    if value.unit in PARTS and value.value > 1:
        yield f"{name} is {value.value:.6g}, above 1"
    if value.unit in WHOLE and not value.value.is_integer():
        yield f"{name} is {value.value:.6g}, no whole number of {value.unit}"
    if (value.low is None) != (value.high is None):
        yield f"{name} has one bound of an interval without the other"
    elif value.low is not None and not _between(value.low, value.value, value.high):
        yield f"{name} is {value.value:.6g}, outside of its interval of {value.low:.6g} to {value.high:.6g}"
    elif value.images is not None:
        yield from _doubts_of_images(name, value, value.images, record)


def _doubts_of_images(name: str, value: Value, images: int, record: Record) -> Iterator[str]:
    """Whether an accuracy is one that so many images can give, with the interval that it has then."""
    card = DATASETS.get(str(record.parameters.get("dataset")))
    most = max(card.test, card.validation) if card else 10**9
    if not 0 < images <= most:
        yield f"{name} was measured on {images} images, of {most} at most"
    elif value.unit == "fraction" and 0 <= value.value <= 1:
        correct = round(value.value * images)
        low, high = wilson(correct, images)
        if abs(value.value - correct / images) > CLOSE:
            yield f"{name} is {value.value:.6g}, which is not a whole number of {images} images"
        elif value.low is None or value.high is None or max(abs(value.low - low), abs(value.high - high)) > CLOSE:
            has = "none" if value.low is None else f"{value.low:.6g} to {value.high:.6g}"
            yield f"{name} of {images} images has the interval {low:.6g} to {high:.6g}, and the record says {has}"


def _between(low: object, value: object, high: object) -> bool:
    """Whether three numbers are in their order, as far as floating point tells."""
    if not all(isinstance(number, int | float) for number in (low, value, high)):
        return False
    return low - CLOSE * abs(low) <= value <= high + CLOSE * abs(high)  # type: ignore[operator, arg-type]
