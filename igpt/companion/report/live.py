"""How fast the book's live panel is: numbers out of the record that `igpt panel --measure` writes, for prose."""

from __future__ import annotations

import hashlib
from pathlib import Path

from igpt.companion.report.tables import Cell
from igpt.companion.results.record import Record, Value, usable_record
from igpt.errors import UsageError
from igpt.files import read_json
from igpt.project import Project

KEYS = {  # how a sentence names a value, and how it is shown
    "rate": ("pixels_per_second", "{:,.0f}"),
    "rate-of-four": ("pixels_per_second_of_four", "{:,.0f}"),
    "first": ("first_pixel_seconds", "{:.2g}"),
}


def live_about(project: Project) -> dict[str, object]:
    """What the panel's files say of themselves. Raises UsageError when they have not been made."""
    path = project.root / "book" / "live" / "live.json"
    try:
        found: dict[str, object] = read_json(path)
    except (OSError, ValueError):
        raise UsageError("the book's live panel has not been made: run `make book` where npm is installed") from None
    return found


def live_record_path(project: Project, model: str) -> Path:
    """Where the record of a model's speed in the panel is published."""
    return project.records / "speed" / f"live,model={model}.json"


def live_parts(project: Project) -> dict[str, str]:
    """What the panel's speed depends on: the model's shape, the runtime, and the scripts."""
    about = live_about(project)
    parts = {name: str(about[name]) for name in ("n_layer", "n_embd", "n_head", "n_vocab", "n_ctx")}
    runtime = about["runtime"]
    assert isinstance(runtime, dict)
    parts["runtime"] = f"{runtime['name']} {runtime['version']}"  # its files' hashes differ where another zlib packed them
    for name in ("worker.js", "sampler.js"):
        parts[name] = hashlib.sha256((project.root / "book" / "_live" / name).read_bytes()).hexdigest()
    return parts


def live_number(key: str, project: Project) -> Cell:
    """A number of the panel's speed, with its receipt; pending where nothing was measured for the model it shows.

    Raises UsageError for an unknown key.
    """
    if key not in KEYS:
        raise UsageError(f"there is no number {key!r} of the live panel; there are {', '.join(KEYS)}")
    pending = Cell("pending", (("Status", "not measured yet"), ("Command", "igpt panel --measure")), "pending", word="pending")
    try:
        model, parts = str(live_about(project)["model"]), live_parts(project)
    except UsageError:
        return pending
    path = live_record_path(project, model)
    record = usable_record(path)
    if record is None:
        return pending
    name, form = KEYS[key]
    value = record.values[name]
    stale = ", stale" if record.parts != parts else ""
    return Cell(form.format(value.value) + stale, _receipt(record, value), "measured", (str(path.relative_to(project.records)),))


def _receipt(record: Record, value: Value) -> tuple[tuple[str, str], ...]:
    """What is behind a number."""
    receipt = record.receipt
    spread = f"median of {len(record.series['rounds'])} rounds, {value.low:.4g} to {value.high:.4g}"
    return (
        ("Value", f"{value.value:.4g} {value.unit}, {spread}"),
        ("Model", str(record.parameters["model"])),
        ("Commit", receipt.commit[:12] + (", with uncommitted changes" if receipt.dirty else "")),
        ("Hardware", receipt.hardware),
        ("Versions", ", ".join(f"{name} {version}" for name, version in receipt.versions.items())),
        ("Command", receipt.command),
    )
