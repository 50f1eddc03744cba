"""The book's live panel: its colours, and its speed in prose, from the record that `igpt panel --measure` writes."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from igpt.companion.report.tables import Cell
from igpt.companion.results.record import usable_record
from igpt.errors import UsageError
from igpt.files import read_json
from igpt.palette import Palette
from igpt.project import Project

KEYS = {  # names in prose: keys of values, and their formats
    "rate": ("pixels_per_second", "{:,.0f}"),
    "rate-of-four": ("pixels_per_second_of_four", "{:,.0f}"),
    "first": ("first_pixel_seconds", "{:.2g}"),
}


def colours_of(palette: Palette) -> dict[str, list[list[float]]]:
    """A palette for the book's scripts: ``centres`` in [-1, 1] and ``colours`` in 0 .. 255, by token."""
    centres = [[float(c) for c in centre] for centre in palette.centres]
    return {"centres": centres, "colours": palette.dequantize(np.arange(len(palette))).tolist()}


def released_palette_json() -> str:
    """The 512 released colours as `colours_of`, in JSON."""
    with as_file(files("igpt.weights") / "released_palette.npy") as path:
        return json.dumps(colours_of(Palette.load(path))) + "\n"


def live_folder(project: Project) -> Path:
    """The folder of the panel's files."""
    return project.root / "book" / "live"


def live_about(project: Project) -> dict[str, Any]:
    """The description of the panel's files. Raises UsageError when they have not been made."""
    try:
        return dict(read_json(live_folder(project) / "live.json"))
    except (OSError, ValueError, TypeError):
        raise UsageError("the book's live panel has not been made: run `make book` where npm is installed") from None


def live_record_path(project: Project, model: str) -> Path:
    """The published record of a model's speed in the panel."""
    return project.records / "speed" / f"live,model={model}.json"


def live_parts(project: Project) -> dict[str, str]:
    """The inputs of the panel's speed: the model's shape, the runtime, and the scripts."""
    about = live_about(project)
    parts = {name: str(about[name]) for name in ("n_layer", "n_embd", "n_head", "n_vocab", "n_ctx")}
    parts["runtime"] = f"{about['runtime']['name']} {about['runtime']['version']}"  # its files' hashes depend on zlib
    for name in ("worker.js", "sampler.js"):
        parts[name] = hashlib.sha256((project.root / "book" / "_live" / name).read_bytes()).hexdigest()
    return parts


def live_number(key: str, project: Project) -> Cell:
    """A number of the panel's speed, with its receipt; pending where nothing was measured for the panel's model.

    Raises UsageError for an unknown key.
    """
    if key not in KEYS:
        raise UsageError(f"there is no number {key!r} of the live panel; there are {', '.join(KEYS)}")
    pending = Cell("pending", (("Status", "not measured yet"), ("Command", "igpt panel --measure")), "pending", word="pending")
    try:
        path, parts = live_record_path(project, str(live_about(project)["model"])), live_parts(project)
    except UsageError:
        return pending
    if (record := usable_record(path)) is None:
        return pending
    name, form = KEYS[key]
    value, receipt = record.values[name], record.receipt
    spread = f"median of {len(record.series['rounds'])} rounds, {value.low:.4g} to {value.high:.4g}"
    rows = (
        ("Value", f"{value.value:.4g} {value.unit}, {spread}"),
        ("Model", str(record.parameters["model"])),
        ("Commit", receipt.commit[:12] + (", with uncommitted changes" if receipt.dirty else "")),
        ("Hardware", receipt.hardware),
        ("Versions", ", ".join(f"{name} {version}" for name, version in receipt.versions.items())),
        ("Command", receipt.command),
    )
    stale = ", stale" if record.parts != parts else ""
    return Cell(form.format(value.value) + stale, rows, "measured", (str(path.relative_to(project.records)),))
