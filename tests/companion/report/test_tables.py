from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from conftest import ROOT, some_receipt

from igpt.companion.experiments.cells import TABLES, experiments
from igpt.companion.report.numbers import number
from igpt.companion.report.provenance import provenance_table, records_table
from igpt.companion.report.tables import Cell, ResultTable, render, result_table, score_counts, table_names
from igpt.companion.results.record import Record, Value, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore, record_path
from igpt.errors import UsageError
from igpt.project import Project

ACCURACY = {0: 0.90, 1: 0.92, 2: 0.94}


def write_records(project: Project, name: str, *, dirty: bool = False, signature: str | None = None, tier: str = "tiny") -> None:
    """Records for one tier's run of an experiment, by hand: every value 0.5, ``accuracy`` as above."""
    signer = Signer(project.notebooks)
    run = next(e for e in experiments() if e.name == name).measurement(tier)
    assert run is not None
    for stage in map(signer.canonical, run.stages()):
        seed = int(stage.parameters["seed"])
        keys = {"accuracy": ACCURACY[seed], "untrained": 0.5 - 0.01 * seed, "final_layer": 0.8, "best_depth": 0.5}
        signed = signer.sign(stage)
        record = Record(
            schema_version=1,
            stage=stage.name,
            parameters=signer.parameters(stage),
            signature=signature or signed.digest,
            parts=signed.parts,
            values={key: Value(value=value, unit="fraction") for key, value in keys.items()},
            series={},
            receipt=some_receipt(stage, dirty=dirty),
        )
        write_record(record_path(project, stage), record)


def cell_of(table: ResultTable, column: str, row_id: str) -> Cell:
    """The cell of a published row, found by the row named in its receipt."""
    published = table.columns.index("Published")
    row = next(row for row in table.rows if dict(row[published].receipt)["Row"] == row_id)
    return row[table.columns.index(column)]


def test_without_records_every_cell_of_ours_is_pending_with_its_rule_cost_and_command(project: Project) -> None:
    for name in table_names():
        table = result_table(name, RecordStore(project))
        assert {cell.kind for row in table.rows for cell in row} <= {"plain", "published", "pending"}
    cell = cell_of(result_table("headline", RecordStore(project)), "Paper's scale", "headline-001")
    receipt = dict(cell.receipt)
    assert cell.text == "pending"
    assert receipt["Command"] == "igpt run headline-001 --tier paper"
    assert receipt["Criterion"] == "the mean lies within 0.005 of the published value"
    assert receipt["Cost"].startswith("H100-hours: 830 of pre-training")


def test_a_measured_cell_has_mean_interval_seeds_verdict_and_receipt(project: Project) -> None:
    write_records(project, "headline-001")
    cell = cell_of(result_table("headline", RecordStore(project)), "Tiny tier (digits)", "headline-001")
    half = 4.302652729911275 * 2 / math.sqrt(3)
    assert cell.text == f"92.0 ± {half:.1f} (3 seeds), claim holds"
    receipt = dict(cell.receipt)
    assert receipt["Values"].startswith("0.9000, 0.9200, 0.9400")
    assert receipt["Commit"] == "0123456789ab"
    assert receipt["Seeds"] == "0, 1, 2"
    assert receipt["Hardware"] == "a processor"
    assert receipt["Seconds"] == "6 in all"
    assert receipt["Notebook"] == "notebooks/linear_probe.ipynb"
    assert "igpt run linear_probe,model=tiny-l,seed=2" in receipt["Command"]
    assert "model = tiny-l" in receipt["Parameters"]
    assert cell.records == tuple(f"tiny/linear_probe,model=tiny-l,seed={seed}.json" for seed in range(3))


def test_records_of_a_dirty_tree_are_marked(project: Project) -> None:
    write_records(project, "headline-001", dirty=True)
    cell = cell_of(result_table("headline", RecordStore(project)), "Tiny tier (digits)", "headline-001")
    assert "with uncommitted changes" in dict(cell.receipt)["Commit"]
    assert "3 records with uncommitted changes" in {row[1].text for row in provenance_table(project).rows}
    assert {row[-1].text for row in records_table(project).rows} == {"uncommitted changes"}


def test_records_of_other_code_are_marked_stale(project: Project) -> None:
    write_records(project, "headline-001", signature="0" * 64)
    cell = cell_of(result_table("headline", RecordStore(project)), "Tiny tier (digits)", "headline-001")
    assert cell.text.endswith("claim holds, stale")
    assert dict(cell.receipt)["State"].startswith("stale: made before the code")


def test_one_missing_seed_leaves_the_cell_pending(project: Project) -> None:
    write_records(project, "headline-001")
    next(project.records.glob("tiny/*seed=1.json")).unlink()
    cell = cell_of(result_table("headline", RecordStore(project)), "Tiny tier (digits)", "headline-001")
    assert (cell.text, cell.kind) == ("pending", "pending")


def test_a_number_from_memory_is_printed_as_such(project: Project) -> None:
    board = result_table("learning-rates", RecordStore(project))
    texts = [row[board.columns.index("Published")].text for row in board.rows]
    assert sum("(from memory)" in text for text in texts) == 7
    digitised = result_table("loss-against-probe", RecordStore(project))
    assert all("(digitised)" in row[digitised.columns.index("Published")].text for row in digitised.rows)


def test_every_number_of_ours_is_on_the_scoreboard_and_counted(project: Project) -> None:
    board = result_table("scoreboard", RecordStore(project))
    counts = score_counts(board)
    ours = [e for e in experiments() if e.published.ours]
    assert len(board.rows) == len(ours)
    for row in counts.rows:
        assert sum(int(cell.text) for cell in row[1:]) == len(ours)


def test_every_table_of_post_and_paper_is_there_with_other_systems_as_published(project: Project) -> None:
    assert {"headline", "linear-probes", "fine-tunes", "imagenet-probes", "low-data", "bert", "depth"} <= {t.name for t in TABLES}
    table = result_table("imagenet-probes", RecordStore(project))
    systems = {row[0].text.split()[0] for row in table.rows}
    assert {"SimCLR", "MoCo", "AMDIM", "CPC"} <= systems
    assert {"Features", "Parameters (M)"} <= set(table.columns)


@pytest.mark.parametrize("name", ["scoreboard", "headline", "low-data"])
def test_the_four_formats_say_the_same(project: Project, name: str) -> None:
    table = result_table(name, RecordStore(project))
    rows = list(csv.reader(io.StringIO(render(table, "csv"))))
    assert rows[0] == list(table.columns)
    assert rows[1:] == [[cell.text for cell in row] for row in table.rows]
    markdown = render(table, "md").splitlines()
    assert len(markdown) == len(table.rows) + 2
    assert render(table, "html").count("<tr>") == len(table.rows) + 1
    latex = render(table, "latex")
    assert latex.count(r"\\") == len(table.rows) + 1
    assert "\n%" not in latex
    assert latex.count(r"\%") == sum(cell.text.count("%") for row in table.rows for cell in row)
    assert "±" not in latex


def test_an_unknown_table_is_refused(project: Project) -> None:
    with pytest.raises(UsageError, match="no table 'hedline'; did you mean headline"):
        result_table("hedline", RecordStore(project))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("published headline-001", "96.3 %"),
        ("fact igpt-l.steps", "1,000,000"),
        ("fact digits.images", "1,797"),
        ("fact level", "95 %"),
    ],
)
def test_numbers_for_prose_are_looked_up(project: Project, name: str, text: str) -> None:
    assert number(name, RecordStore(project)).text == text


@pytest.mark.parametrize(
    "name", ["published nothing-1", "measured headline-001", "measured headline-002 tiny", "fact seed", "", "seeds"]
)
def test_a_name_that_stands_for_nothing_is_refused(project: Project, name: str) -> None:
    with pytest.raises(UsageError, match=r"names no number|no fact 'seed'; did you mean seeds"):
        number(name, RecordStore(project))


def test_the_schema_of_records_accepts_what_is_written(project: Project) -> None:
    schema = Record.model_json_schema()
    assert schema["additionalProperties"] is False
    write_records(project, "headline-001")
    content = json.loads(next(Path(project.records).glob("tiny/*.json")).read_text())
    assert set(schema["required"]) <= set(content) == set(schema["properties"])


def test_the_books_chapters_name_every_table_once_at_least() -> None:
    text = "".join(path.read_text() for path in (ROOT / "book").glob("**/*.md") if "_build" not in path.parts)
    missing = [table.name for table in TABLES if f"{{igpt-table}} {table.name}\n" not in text]
    assert missing == []


def test_a_cell_whose_comparison_has_not_run_is_pending(project: Project) -> None:
    write_records(project, "bert-112")
    for path in project.records.glob("tiny/linear_probe,model=tiny-l,objective=bert,seed=0.json"):
        path.unlink()
    cell = cell_of(result_table("bert", RecordStore(project)), "Tiny tier (digits)", "bert-112")
    assert (cell.text, cell.kind) == ("pending", "pending")


def test_a_comparison_of_one_seed_without_its_interval_is_pending_and_says_what_to_run(project: Project) -> None:
    write_records(project, "probe-paper-103", tier="laptop")
    cell = cell_of(result_table("scoreboard", RecordStore(project)), "Laptop tier (CIFAR-10, 16x16)", "probe-paper-103")
    assert (cell.text, cell.kind) == ("pending", "pending")
    assert dict(cell.receipt)["Status"].startswith(
        "final_layer has no interval, since its record is of an older version: igpt run linear_probe,"
    )
