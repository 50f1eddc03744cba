"""Whether a record agrees with itself. Nothing is computed again: a record that was invented with care passes."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from igpt.data import DATASETS
from igpt.measure import wilson
from igpt.results.record import Record, Value
from igpt.shape import ModelShape

PARTS = ("fraction", "of the depth")  # units of what is a part of one
WHOLE = ("parameters", "features", "epochs", "steps")  # and of what is counted
CLOSE = 1e-6  # that two ways to the same number may differ by
AHEAD = timedelta(hours=1)  # that another machine's clock may be ahead

Restated = dict[str, Mapping[str, float]]  # by value: itself and its bounds, as the series have them


def doubts_of_stage(record: Record) -> list[str]:
    """Where parameters, parts and receipt do not belong to one run of the record's stage."""
    signed = {name.removeprefix("parameter "): text for name, text in record.parts.items() if name.startswith("parameter ")}
    given = {name: json.dumps(value) for name, value in record.parameters.items()}
    doubts = [
        f"its parameter {name} is {given.get(name, 'absent')}, and its signature was taken over {signed.get(name, 'none')}"
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
    """Where values do not fit their units, their intervals, the data set, or the series that state them again."""
    doubts = [doubt for name, value in record.values.items() for doubt in _doubts_of_value(name, value, record)]
    for name, rows in record.series.items():
        for place, row in enumerate(rows):
            value = row.get("accuracy", row.get("value"))
            if "low" in row and "high" in row and not _between(row["low"], value, row["high"]):
                doubts.append(f"row {place} of its series {name} lies outside of its interval")
    for name, restated in _restated(record).items():
        found = record.values.get(name)
        for key, number in restated.items():
            mine = getattr(found, key, None)
            if mine is not None and not math.isclose(mine, number, rel_tol=CLOSE, abs_tol=CLOSE):
                what = name if key == "value" else f"the {key} of {name}"
                doubts.append(f"{what} is {mine:.6g}, and {number:.6g} by the rest of the record")
    return doubts


def _doubts_of_time(finished: str) -> Iterator[str]:
    """Whether a record was finished at a time that has been."""
    try:
        when = datetime.fromisoformat(finished)
    except ValueError:
        yield f"it was finished at {finished!r}, which is no time"
        return
    if when.utcoffset() != timedelta(0):
        yield f"it was finished at {finished}, which is not in UTC"
    elif when - datetime.now(UTC) > AHEAD:
        yield f"it was finished at {finished}, which has not been yet"


def _doubts_of_versions(record: Record) -> Iterator[str]:
    """Whether the receipt's versions are of the majors that were signed."""
    for name, found in record.receipt.versions.items():
        signed = record.parts.get(f"library {name}")
        if signed is not None and found.partition(".")[0] != signed:
            yield f"its receipt has {name} {found}, and its signature was taken over {name} {signed}"


def _doubts_of_value(name: str, value: Value, record: Record) -> Iterator[str]:
    """What is wrong with one value."""
    if value.value < 0:
        yield f"{name} is {value.value:.6g}, below zero"
    if value.unit in PARTS and value.value > 1:
        yield f"{name} is {value.value:.6g}, more than all"
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
        yield f"{name} was measured on {images} images, of {most} that there are"
    elif value.unit == "fraction" and 0 <= value.value <= 1:
        correct = round(value.value * images)
        low, high = wilson(correct, images)
        if abs(value.value - correct / images) > CLOSE:
            yield f"{name} is {value.value:.6g}, which no number of {images} images is"
        elif value.low is None or value.high is None or max(abs(value.low - low), abs(value.high - high)) > CLOSE:
            has = "none" if value.low is None else f"{value.low:.6g} to {value.high:.6g}"
            yield f"{name} of {images} images has the interval {low:.6g} to {high:.6g}, and the record says {has}"


def _between(low: object, value: object, high: object) -> bool:
    """Whether three numbers are in their order, as far as floating point tells."""
    if not all(isinstance(number, int | float) for number in (low, value, high)):
        return False
    return low - CLOSE * abs(low) <= value <= high + CLOSE * abs(high)  # type: ignore[operator, arg-type]


def _restated(record: Record) -> Restated:
    """What the series say of values; nothing where they are others than the stage's notebook writes."""
    again = _RESTATED.get(record.stage.partition(",")[0])
    try:
        return again(record) if again else {}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration):
        return {}


def _linear_probe(record: Record) -> Restated:
    """Each probe's accuracy at the chosen layer, the curve's ends, and where its best is."""
    found: Restated = {}
    for name, rows in record.series.items():
        row = next(row for row in rows if row["chosen"])
        found["accuracy" if name == "trained" else name] = _accuracy(row)
    curve = record.series["trained"]
    heights = [float(row["accuracy"]) for row in curve]  # type: ignore[arg-type]
    depth = heights.index(max(heights)) / (len(heights) - 1)
    return found | {"first_layer": _accuracy(curve[0]), "final_layer": _accuracy(curve[-1]), "best_depth": {"value": depth}}


def _accuracy(row: Mapping[str, object]) -> Mapping[str, float]:
    """A row's accuracy with its interval."""
    return {"value": float(row["accuracy"]), "low": float(row["low"]), "high": float(row["high"])}  # type: ignore[arg-type]


def _pretrain(record: Record) -> Restated:
    """The last of the losses, and the parameters that the recipe's shape has."""
    [recipe] = [json.loads(text) for name, text in record.parts.items() if name.startswith("recipe ")]
    found: Restated = {"parameters": {"value": float(ModelShape(**recipe["shape"]).parameters)}}
    if losses := record.series.get("losses"):
        found["validation_loss"] = {"value": float(losses[-1]["validation"])}  # type: ignore[arg-type]
    return found


def _rate_search(record: Record) -> Restated:
    """The rate with the least loss."""
    best = min(record.series["rates"], key=lambda row: float(row["loss"]))  # type: ignore[arg-type]
    return {"rate": {"value": float(best["rate"])}, "loss": {"value": float(best["loss"])}}  # type: ignore[arg-type]


def _milestones(record: Record) -> Restated:
    """Accuracy and loss of each milestone."""
    rows = list(enumerate(record.series["milestones"]))
    return {f"{key}_{number}": {"value": float(row[key])} for number, row in rows for key in ("accuracy", "loss")}  # type: ignore[arg-type]


def _low_data(record: Record) -> Restated:
    """Mean and deviation over the draws."""
    from igpt.evaluate.low_data import draw_values

    found = draw_values(record.series["draws"])  # type: ignore[arg-type]
    return {name: {key: value for key, value in each.items() if key != "unit"} for name, each in found.items()}  # type: ignore[misc]


def _probe_settings(record: Record) -> Restated:
    """The best strength of each way to fit."""
    kinds = {"accuracy": ("standardised", "optimum"), "raw": ("raw", "optimum"), "default": ("standardised", "scikit-learn")}
    kinds["raw_default"] = ("raw", "scikit-learn")
    found: Restated = {}
    for name, kind in kinds.items():
        rows = [row for row in record.series["settings"] if (row["scaling"], row["solver"]) == kind]
        found[name] = {"value": max(float(row["value"]) for row in rows)}  # type: ignore[arg-type]
    return found


def _speed(record: Record) -> Restated:
    """Median, least and greatest of the rounds."""
    seconds: dict[str, list[float]] = {}
    for row in record.series["rounds"]:
        seconds.setdefault(str(row["contestant"]), []).append(float(row["seconds"]))  # type: ignore[arg-type]
    return {n: {"value": statistics.median(found), "low": min(found), "high": max(found)} for n, found in seconds.items()}


def _released_loss(record: Record) -> Restated:
    """Bits are nats in another unit."""
    return {"bits": {"value": record.values["nats"].value / math.log(2)}}


_RESTATED: dict[str, Callable[[Record], Restated]] = {
    "linear_probe": _linear_probe,
    "pretrain": _pretrain,
    "rate_search": _rate_search,
    "loss_against_probe": _milestones,
    "low_data": _low_data,
    "probe_settings": _probe_settings,
    "speed": _speed,
    "released_loss": _released_loss,
}
