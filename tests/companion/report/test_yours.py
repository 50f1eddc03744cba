"""A reader's own records: beside ours, labelled, never among them, and their disagreements pointed out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import igpt_here as igpt
from test_tables import cell_of, write_records

from igpt.companion.experiments.tiers import TIERS
from igpt.companion.report.provenance import yours_table
from igpt.companion.report.tables import render, result_table, values_table
from igpt.companion.results.record import Record, Value, write_record
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import ReaderStore, RecordStore
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project

COLUMN = "Yours (mine): Tiny tier (digits)"


@pytest.fixture
def mine(project: Project) -> Path:
    """The records of one experiment, moved out of the project into a folder of any layout."""
    write_records(project, "headline-001")
    folder = project.root / "mine"
    shutil.copytree(project.records / "tiny", folder / "deep" / "er")
    return folder


def change(folder: Path, seed: int, shift: float, *, interval: float | None = None) -> None:
    """Move a record's accuracy, and give it an interval."""
    path = next(folder.rglob(f"linear_probe,*seed={seed}.json"))
    record = Record.model_validate_json(path.read_bytes())
    value = record.values["accuracy"]
    moved = value.value + shift
    update = {"value": moved, **({} if interval is None else {"low": moved - interval, "high": moved + interval})}
    write_record(path, record.model_copy(update={"values": {**record.values, "accuracy": value.model_copy(update=update)}}))


def test_they_fill_a_column_of_their_own_and_leave_ours_alone(project: Project, mine: Path) -> None:
    shutil.rmtree(project.records / "tiny")
    table = result_table("headline", RecordStore(project), ReaderStore(project, mine))
    assert cell_of(table, COLUMN, "headline-001").text.startswith("92.0")
    assert "from the folder mine" in dict(cell_of(table, COLUMN, "headline-001").receipt)["Whose"]
    assert cell_of(table, COLUMN, "headline-001").records[0].startswith("../yours/deep/er/linear_probe")
    assert cell_of(table, "Tiny tier (digits)", "headline-001").text == "pending"
    assert COLUMN in result_table("scoreboard", RecordStore(project), ReaderStore(project, mine)).columns
    assert COLUMN not in result_table("headline", RecordStore(project)).columns
    assert COLUMN not in result_table("released-losses", RecordStore(project), ReaderStore(project, mine)).columns


def test_evaluations_of_their_own_weights_stand_beside_the_released_ones_and_agree_with_nothing(project: Project) -> None:
    own = "big-model-0123456789ab"
    write_records(project, "headline-001", tier="released")
    [path] = (project.records / "released").glob("linear_probe,*")
    record = Record.model_validate_json(path.read_bytes())
    signer = Signer(project.notebooks)
    stage = signer.canonical(Stage.of("linear_probe", **{**record.parameters, "weights": own}))
    update = {"stage": stage.name, "parameters": signer.parameters(stage), "signature": signer.sign(stage).digest}
    values = {**record.values, "accuracy": Value(value=0.5, unit="fraction")}
    write_record(project.root / "mine" / "record.json", record.model_copy(update={**update, "values": values}))
    column = f"Yours (mine): {TIERS['released'].title}"
    table = result_table("headline", RecordStore(project), ReaderStore(project, project.root / "mine"))
    cell = cell_of(table, column, "headline-001")
    assert cell.text.startswith("50.0") and cell.text.endswith(f", differs, on {own}")
    assert cell_of(table, TIERS["released"].title, "headline-001").text.startswith("90.0")
    assert cell_of(table, column, "headline-003").text == "–"
    shutil.copy(path, project.root / "mine" / path.name)  # of a stage itself before any that stands in
    table = result_table("headline", RecordStore(project), ReaderStore(project, project.root / "mine"))
    assert cell_of(table, column, "headline-001").text.startswith("90.0")


def test_agreement_is_not_remarked_and_disagreement_is(project: Project, mine: Path) -> None:
    yours = ReaderStore(project, mine)
    assert "disagrees" not in cell_of(result_table("headline", RecordStore(project), yours), COLUMN, "headline-001").text
    for seed in range(3):
        change(mine, seed, -0.4)
    cell = cell_of(result_table("headline", RecordStore(project), ReaderStore(project, mine)), COLUMN, "headline-001")
    assert cell.text.endswith("disagrees with ours")
    assert "0.5200 in yours and 0.9200 in ours" in dict(cell.receipt)["Disagrees"]


def test_one_record_beyond_its_interval_is_listed(project: Project, mine: Path) -> None:
    assert yours_table(project, ReaderStore(project, mine)).rows == ()
    change(project.records, 1, 0.0, interval=0.01)
    change(mine, 1, 0.1, interval=0.01)
    table = yours_table(project, ReaderStore(project, mine))
    assert [cell.text for cell in table.rows[0]][1:4] == ["accuracy", "1.02 [1.01, 1.03]", "0.92 [0.91, 0.93]"]
    assert table.rows[0][5].text == "ours"
    assert "1 value beyond" in table.caption


def test_two_of_theirs_that_disagree_are_listed_and_the_later_one_counts(project: Project, mine: Path) -> None:
    change(mine, 0, 0.0, interval=0.01)
    shutil.copytree(mine / "deep", mine / "again")
    change(mine / "again", 0, -0.2, interval=0.01)
    path = next((mine / "again").rglob("*seed=0.json"))
    record = Record.model_validate_json(path.read_bytes())
    write_record(
        path, record.model_copy(update={"receipt": record.receipt.model_copy(update={"finished": "2027-01-01T00:00:00+00:00"})})
    )
    yours = ReaderStore(project, mine)
    assert len(yours_table(project, yours).rows) == 1
    assert (
        "0.7000" in dict(cell_of(result_table("headline", RecordStore(project), yours), COLUMN, "headline-001").receipt)["Values"]
    )


def test_the_later_record_is_the_later_in_time_and_not_as_a_text(project: Project, mine: Path) -> None:
    path = next(mine.rglob("linear_probe,*seed=0.json"))
    record = Record.model_validate_json(path.read_bytes())
    times = {"late": "2026-11-24T20:25:11+00:00", "early": "2026-11-24T23:00:00+05:00", "never": "zzzz"}
    for name, finished in times.items():
        receipt = record.receipt.model_copy(update={"finished": finished, "hardware": name})
        write_record(mine / name / path.name, record.model_copy(update={"receipt": receipt}))
    path.unlink()
    found = ReaderStore(project, mine).read(Stage.of("linear_probe", **record.parameters))
    assert found is not None
    assert found.receipt.hardware == "late"


def test_all_values_of_their_latest_records_are_a_table(project: Project, mine: Path) -> None:
    change(mine, 0, 0.0, interval=0.01)
    shutil.copytree(mine / "deep", mine / "again")  # the same records twice
    table = values_table(ReaderStore(project, mine))
    rows = [[cell.text for cell in row] for row in table.rows]
    stages = sorted({path.stem for path in mine.rglob("*.json")})
    assert [row[0] for row in rows if row[1] == "accuracy"] == stages
    [first] = [row for row in rows if row[0].endswith("seed=0") and row[1] == "accuracy"]
    assert first[2:] == ["90 %", "89 to 91", "–"]
    done = igpt("table", "--records", str(mine), root=project.root)
    assert done.returncode == 0 and "89 to 91" in done.stdout
    done = igpt("table", root=project.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name a table, one of scoreboard, headline" in done.stderr


def test_a_folder_that_is_none_or_holds_none_is_one_sentence(project: Project) -> None:
    with pytest.raises(UsageError, match="there is no folder of records"):
        ReaderStore(project, project.root / "absent")
    (project.root / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no records"):
        ReaderStore(project, project.root / "empty")
    (project.root / "empty" / "text.json").write_text("text")
    done = igpt("table", "headline", "--records", "empty", root=project.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no records" in done.stderr
    (project.root / "empty" / "record.json").write_text("{")
    with pytest.raises(UsageError, match="holds no records that can be read .*is not a record"):
        ReaderStore(project, project.root / "empty")


def test_what_runs_leave_beside_records_is_passed_over(project: Project, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave = {
        "run/trained-0-0/header.json": '{"layers": [0, 1], "seed": 0}',
        "run/weights/config.json": '{"model_type": "imagegpt"}',
        "run/metrics.json": "[1, 2]",
        "run/card.json": '{"model": "laptop-l", "seed": 0}',
        "run/half.json": '{"a": ',
        ".jobs/0a.json": (mine / "deep/er").glob("*.json").__next__().read_text(),
    }
    for name, text in leave.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    (mine / "loop").symlink_to(mine)
    (mine / "ends.json").symlink_to(mine / "ends.json")
    found = ReaderStore(project, mine).all
    assert [path.parent.name for path, _ in found] == ["er"] * len(found)
    assert len(found) == len(list((mine / "deep/er").glob("*.json")))
    assert capsys.readouterr().err == ""


def test_a_damaged_record_among_others_is_told_of_and_left_out(
    project: Project, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = len(ReaderStore(project, mine).all)
    path = next(mine.rglob("linear_probe,*seed=1.json"))
    path.write_text(path.read_text()[:200])
    assert len(ReaderStore(project, mine).all) == whole - 1
    said = capsys.readouterr().err
    assert said.startswith(f"igpt: {path} is not a record")
    assert said.endswith("it is left out\n")
    assert "delete" not in said


def test_a_record_whose_bounds_are_in_the_wrong_order_is_told_of_and_left_out(
    project: Project, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = len(ReaderStore(project, mine).all)
    change(mine, 1, 0.0, interval=-0.1)
    assert len(ReaderStore(project, mine).all) == whole - 1
    assert "is above high" in capsys.readouterr().err
    result_table("headline", RecordStore(project), ReaderStore(project, mine))
    change(project.records / "tiny", 1, 0.0, interval=-0.1)
    assert cell_of(result_table("headline", RecordStore(project), None), "Tiny tier (digits)", "headline-001").text == "pending"


def test_a_folders_name_is_text_in_every_format(project: Project, mine: Path) -> None:
    folder = mine.rename(mine.parent / "a|<b>\x1b[2J\u202e")
    table = result_table("headline", RecordStore(project), ReaderStore(project, folder))
    for form in ("md", "html", "csv", "latex"):
        text = render(table, form)
        assert all(c.isprintable() or c == "\n" for c in text)
        assert ("<b>" in text.replace("\\<b>", "")) == (form == "csv")
    assert all(line.replace("\\|", "").count("|") == len(table.columns) + 1 for line in render(table, "md").splitlines())
