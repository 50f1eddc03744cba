"""Check that a record is consistent with itself and with its executed notebook.

Nothing is recomputed: a carefully forged record passes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from igpt.companion.results.notebooks import code_cells
from igpt.companion.results.record import Record, Value
from igpt.data.cards import data_card, is_known
from igpt.measure import wilson

PARTS = ("fraction", "of the depth")  # units of values from 0 to 1
WHOLE = ("parameters", "features", "epochs", "steps")  # units of counts
CLOSE = 1e-6  # tolerance for numbers computed in two ways
AHEAD = timedelta(hours=1)  # tolerance for clocks of other machines
LINE = re.compile(r"^Record of (.+): SHA-256 ([0-9a-f]{64}) without its times$", re.MULTILINE)
NO_NOTEBOOK = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SyntaxError, MemoryError)


def doubts_of_stage(record: Record) -> list[str]:
    """Problems where parameters, parts and receipt do not match the record's stage."""
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
    """Problems where values do not fit their units, intervals or data set, or points of series their intervals."""
    doubts = [doubt for name, value in record.values.items() for doubt in _doubts_of_value(name, value, record)]
    for name, rows in record.series.items():
        for index, row in enumerate(rows):
            value = row.get("accuracy", row.get("value"))
            if "low" in row and "high" in row and not _between(row["low"], value, row["high"]):
                doubts.append(f"row {index} of its series {name} lies outside of its interval")
    return doubts


def _doubts_of_time(finished: str) -> Iterator[str]:
    """Problems of the time of finishing: not ISO 8601, not UTC, or in the future."""
    try:
        time = datetime.fromisoformat(finished)
    except ValueError:
        yield f"it was finished at {finished!r}, which is not an ISO 8601 time"
        return
    if time.utcoffset() != timedelta(0):
        yield f"it was finished at {finished}, which is not in UTC"
    elif time - datetime.now(UTC) > AHEAD:
        yield f"it was finished at {finished}, which is in the future"


def _doubts_of_versions(record: Record) -> Iterator[str]:
    """Problems where versions in the receipt do not match the signed major versions."""
    for name, library_version in record.receipt.versions.items():
        signed = record.parts.get(f"library {name}")
        if signed is not None and library_version.partition(".")[0] != signed:
            yield f"its receipt has {name} {library_version}, and its signature covers {name} {signed}"


def _doubts_of_value(name: str, value: Value, record: Record) -> Iterator[str]:
    """Problems of one value."""
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
    """Problems of an accuracy: too many images, not a whole number of correct images, or a wrong Wilson interval."""
    dataset = str(record.parameters.get("dataset"))
    card = data_card(dataset) if is_known(dataset) else None
    maximum = max(card.test, card.validation) if card else 10**9
    if not 0 < images <= maximum:
        yield f"{name} was measured on {images} images, of {maximum} at most"
    elif value.unit == "fraction" and 0 <= value.value <= 1:
        correct = round(value.value * images)
        low, high = wilson(correct, images)
        if abs(value.value - correct / images) > CLOSE:
            yield f"{name} is {value.value:.6g}, which is not a whole number of {images} images"
        elif value.low is None or value.high is None or max(abs(value.low - low), abs(value.high - high)) > CLOSE:
            interval = "none" if value.low is None else f"{value.low:.6g} to {value.high:.6g}"
            yield f"{name} of {images} images has the interval {low:.6g} to {high:.6g}, and the record says {interval}"


def _between(low: object, value: object, high: object) -> bool:
    """Whether ``low <= value <= high``, with a tolerance; False unless all are numbers."""
    if not all(isinstance(number, int | float) for number in (low, value, high)):
        return False
    return low - CLOSE * abs(low) <= value <= high + CLOSE * abs(high)  # type: ignore[operator, arg-type]


def shown_line(record: Record) -> str:
    """The line that a notebook prints about its record; identical for all runs with the same results."""
    return f"Record of {record.stage}: SHA-256 {_digest(record)} without its times"


def shown_records(notebook: Path) -> dict[str, str]:
    """Digests of the records in the output of an executed notebook, by stage; empty for a file that is not a notebook."""
    try:
        outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
        printed = ["".join(output["text"]) for output in outputs if output.get("name") == "stdout"]
    except NO_NOTEBOOK:
        return {}
    return {stage: digest for text in printed for stage, digest in LINE.findall(text)}


def doubts_of_notebook(record: Record, notebook: Path) -> list[str]:
    """Problems where an executed notebook shows a different record or was run with different parameters."""
    try:
        ran = _parameters(notebook)
    except NO_NOTEBOOK:
        return [f"{notebook}, which should be its executed notebook, cannot be read"]
    doubts = [
        f"its parameter {name} is {value!r}, and {notebook} was run with {ran[name]!r}"
        for name, value in record.parameters.items()
        if name in ran and ran[name] != value
    ]
    shown = shown_records(notebook)
    if shown and shown.get(record.stage) != _digest(record):
        doubts.append(f"{notebook} shows another record: this one's values, series or receipt are not those of that run")
    return doubts


def _digest(record: Record) -> str:
    """SHA-256 of a record, without its duration and time of finishing."""
    content = record.model_dump(exclude={"receipt": {"seconds", "finished"}})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parameters(notebook: Path) -> dict[str, object]:
    """The parameters of an executed notebook: its defaults, updated with those that papermill injected."""
    values: dict[str, object] = {}
    for tag in ("parameters", "injected-parameters"):
        for cell in code_cells(notebook):
            if tag in cell["metadata"].get("tags", []):
                for node in ast.parse("".join(cell["source"])).body:
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                        values[node.targets[0].id] = ast.literal_eval(node.value)
    return values
