"""An executed notebook and the record that it wrote: whether the one shows the other."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

from igpt.companion.results.notebooks import LARGEST
from igpt.companion.results.record import Record
from igpt.files import read_json

LINE = re.compile(r"^Record of (.+): SHA-256 ([0-9a-f]{64}) without its times$", re.MULTILINE)
NO_NOTEBOOK = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SyntaxError, MemoryError)


def shown_line(record: Record) -> str:
    """What a notebook prints of its record; the same at every run that finds the same."""
    return f"Record of {record.stage}: SHA-256 {_digest(record)} without its times"


def shown_records(notebook: Path) -> dict[str, str]:
    """The records that an executed notebook says it wrote: digests by stage; none for a file that is no notebook."""
    try:
        outputs = [output for cell in _cells(notebook) for output in cell["outputs"]]
        printed = ["".join(output["text"]) for output in outputs if output.get("name") == "stdout"]
    except NO_NOTEBOOK:
        return {}
    return {stage: digest for text in printed for stage, digest in LINE.findall(text)}


def doubts_of_notebook(record: Record, notebook: Path) -> list[str]:
    """Where an executed notebook shows another record than this, or was run with other parameters."""
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
    """SHA-256 of all that a record says, less when it was made and in how many seconds."""
    kept = record.model_dump(exclude={"receipt": {"seconds", "finished"}})
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _cells(notebook: Path) -> list[dict]:  # type: ignore[type-arg]
    """The code cells of a notebook. Raises one of `NO_NOTEBOOK` for a file that is none."""
    return [cell for cell in read_json(notebook, most=LARGEST)["cells"] if cell["cell_type"] == "code"]


def _parameters(notebook: Path) -> dict[str, object]:
    """Names and values that an executed notebook began with: its defaults, and what papermill put after them."""
    found: dict[str, object] = {}
    for tag in ("parameters", "injected-parameters"):
        for cell in _cells(notebook):
            if tag in cell["metadata"].get("tags", []):
                for node in ast.parse("".join(cell["source"])).body:
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                        found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
