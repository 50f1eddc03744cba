"""The live panel's speed in prose: from its record, pending without one, stale when what it depends on has changed."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import ROOT, some_receipt

from igpt.companion.report.live import live_number, live_parts, live_record_path
from igpt.companion.results.record import Record, Value, write_record
from igpt.companion.results.signature import Signature
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


@pytest.fixture
def shown(project: Project) -> Project:
    """A project whose panel has been made."""
    shutil.copytree(ROOT / "book" / "_live", project.root / "book" / "_live")
    (project.root / "book" / "live").mkdir()
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_vocab": 8, "n_ctx": 9}
    about = {"model": "nine", "runtime": {"name": "onnxruntime-web", "version": "1.2.3"}, **shape}
    (project.root / "book" / "live" / "live.json").write_text(json.dumps(about))
    return project


def test_a_number_comes_from_the_record_of_the_model_that_is_shown(shown: Project) -> None:
    assert live_number("rate", shown).text == "pending"
    parts = live_parts(shown)
    write_record(
        live_record_path(shown, "nine"),
        Record(
            schema_version=1,
            stage="live,model=nine",
            parameters={"model": "nine"},
            signature=Signature(parts).digest,
            parts=parts,
            values={"pixels_per_second": Value(value=1234.5, unit="pixels a second", low=1000.0, high=1300.0)},
            series={"rounds": [{"pixels_per_second": 1234.5}]},
            receipt=some_receipt(Stage.of("live", model="nine")),
        ),
    )
    cell = live_number("rate", shown)
    assert (cell.text, cell.records) == ("1,234", ("speed/live,model=nine.json",))
    assert dict(cell.receipt)["Value"] == "1234 pixels a second, median of 1 rounds, 1000 to 1300"
    worker = shown.root / "book" / "_live" / "worker.js"
    worker.write_text(worker.read_text() + "\n// changed\n")
    assert live_number("rate", shown).text == "1,234, stale"


def test_without_a_panel_it_is_pending_and_an_unknown_number_is_refused(project: Project) -> None:
    assert live_number("first", project).text == "pending"
    with pytest.raises(UsageError, match="there is no number 'speed'"):
        live_number("speed", project)
