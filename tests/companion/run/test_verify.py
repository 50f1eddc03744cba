"""What is said of a record, and what a repetition finds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Rows, some_record
from conftest import igpt_here as igpt

from igpt.companion.results.record import Record, Value, write_record
from igpt.companion.run.verify import verify_record
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.measure import wilson
from igpt.project import Project

LOW, HIGH = wilson(324, 360)
COMMIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "first"]


@pytest.fixture
def commit(project: Project) -> str:
    """The project as a repository of one commit."""
    (project.root / ".gitignore").write_text("*\n!notebooks\n!notebooks/*\n!.gitignore\n")
    for command in (["git", "init", "-q"], ["git", "add", "."], COMMIT):
        subprocess.run(command, cwd=project.root, check=True)
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def write(project: Project, made: Record, receipt: dict[str, object], changes: dict[str, object]) -> Path:
    path = project.root / "mine.json"
    write_record(path, made.model_copy(update={"receipt": made.receipt.model_copy(update=receipt), **changes}))
    return path


def record(project: Project, commit: str, *, dirty: bool = False, by_hand: bool = False, **changes: object) -> Path:
    stage = Stage.of("palette", dataset="digits", colours=16)
    made, _ = some_record(project, stage, {"colours": Value(value=16, unit="colours")})
    notebook = "notebooks/palette.ipynb" + (", run by hand" if by_hand else "")
    return write(project, made, {"commit": commit, "dirty": dirty, "notebook": notebook}, changes)


def probe(project: Project, commit: str, **changes: object) -> Path:
    """The record of a probe, as its notebook would write it."""
    value = Value(value=0.9, unit="fraction", low=LOW, high=HIGH, images=360)
    values = {"accuracy": value, "final_layer": value, "best_depth": Value(value=1.0, unit="of the depth")}
    rows: Rows = [{"layer": 0, "accuracy": 0.9, "low": LOW, "high": HIGH, "chosen": True}]
    made, _ = some_record(project, Stage.of("linear_probe", model="tiny-l", seed=0), values, {"trained": rows})
    return write(project, made, {"commit": commit}, changes)


def test_of_a_record_without_doubt_it_is_said_what_was_looked_at_and_no_more(project: Project, commit: str) -> None:
    for path in (record(project, commit), probe(project, commit)):
        said, undoubted = verify_record(path)
        assert undoubted
        assert "No problem was found" in said
        assert "values were not computed again: --repeat does that" in said
        assert "trust" not in said
        assert "as this checkout stands" in said
        assert len(said.splitlines()) < 24


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"dirty": True}, "uncommitted changes, so no commit has its code"),
        ({"by_hand": True}, "run by hand"),
        ({"signature": "0" * 64}, "not that of its parts"),
        ({"stage": "palette,seed=0,colour=3"}, "has no parameter 'colour'"),
        ({"stage": "palettes,seed=0"}, "there is no experiment, table or notebook 'palettes,seed=0'"),
        ({"stage": "palette,notebook=3"}, "has no parameter 'notebook'"),
        ({"stage": "palette,dataset=birds,seed=0"}, "birds"),
        ({"stage": "x" * 10**6}, "name has 1,000,000 characters"),
        ({"parameters": {"dataset": "digits", "colours": 17, "seed": 0}}, "its parameter colours is 17, and its signature"),
        (
            {"parameters": {"dataset": "digits", "colours": 17, "seed": 0}},
            "its parameters are those of palette,colours=17,seed=0",
        ),
        ({"parameters": {"dataset": "digits", "colours": 16}}, "its parameter seed is absent"),
        ({"parameters": {"dataset": "digits", "colours": 16, "seed": 0, "tint": 1}}, "has no parameter 'tint'"),
    ],
)
def test_each_doubt_is_named(project: Project, commit: str, changes: dict[str, object], doubt: str) -> None:
    said, undoubted = verify_record(record(project, commit, **changes))  # type: ignore[arg-type]
    assert not undoubted
    assert doubt in said


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"notebook": "notebooks/samples.ipynb"}, "its notebook is notebooks/samples.ipynb, and its stage's is"),
        ({"command": "rm -r ."}, "its command is 'rm -r .'"),
        ({"finished": "2999-01-01T00:00:00+00:00"}, "which is in the future"),
        ({"finished": "yesterday"}, "which is not an ISO 8601 time"),
        ({"finished": "2026-01-02T03:04:05"}, "which is not in UTC"),
        ({"finished": "2026-01-02T03:04:05+02:00"}, "which is not in UTC"),
        ({"versions": {"torch": "1.13"}}, "its receipt has torch 1.13, and its signature covers torch 2"),
        ({"commit": "HEAD"}, "its commit is not in this repository"),
    ],
)
def test_a_receipt_that_does_not_fit_its_record_is_doubted(
    project: Project, commit: str, changes: dict[str, object], doubt: str
) -> None:
    made = Record.model_validate_json(record(project, commit).read_bytes())
    path = write(project, made, changes, {})
    said, undoubted = verify_record(path)
    assert not undoubted
    assert doubt in said


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"value": 0.99}, "accuracy is 0.99, outside of its interval"),
        ({"low": None}, "one bound of an interval without the other"),
        ({"low": None, "high": None}, "the record says none"),
        ({"value": 1.2, "low": None, "high": None, "images": None}, "accuracy is 1.2, above 1"),
        ({"value": -0.1, "low": None, "high": None, "images": None}, "accuracy is -0.1, below zero"),
        ({"low": 0.8999, "high": 0.9001}, "and the record says 0.8999 to 0.9001"),
        ({"value": 0.901}, "which is not a whole number of 360 images"),
        ({"images": 360_000}, "was measured on 360000 images, of 360"),
    ],
)
def test_a_value_that_its_interval_or_its_images_refute_is_doubted(
    project: Project, commit: str, changes: dict[str, object], doubt: str
) -> None:
    value = Value(value=0.9, unit="fraction", low=LOW, high=HIGH, images=360)
    said, undoubted = verify_record(probe(project, commit, values={"accuracy": value.model_copy(update=changes)}, series={}))
    assert not undoubted
    assert doubt in said


@pytest.mark.parametrize(
    "changes", [{"low": 0.95, "high": 0.85}, {"images": 0}, {"images": -(10**30)}, {"value": 1e300}], ids=str
)
def test_a_value_that_can_be_none_makes_no_record(project: Project, commit: str, changes: dict[str, object]) -> None:
    value = Value(value=0.9, unit="fraction", low=LOW, high=HIGH, images=360)
    path = probe(project, commit, values={"accuracy": value.model_copy(update=changes)}, series={})
    with pytest.raises(UsageError, match=r"is not a valid record \(values\.accuracy"):
        verify_record(path)


def test_a_name_of_file_or_folder_that_is_another_stages_is_doubted(project: Project, commit: str) -> None:
    path = record(project, commit)
    for place in ("palette,seed=1.json", "runs/palette,seed=0-0123456789ab/record.json", "book/records/laptop/mine.json"):
        (project.root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, project.root / place)
        said, undoubted = verify_record(project.root / place)
        assert not undoubted
        assert "its file is called" in said or "it lies in a folder called" in said or "its place there is" in said


@pytest.mark.parametrize("name", ["palette,seed=0 (1).json", "mine, of a laptop/record.json", "a=b.json"])
def test_a_copy_under_a_name_of_ones_own_is_no_doubt(project: Project, commit: str, name: str) -> None:
    path = record(project, commit)
    (project.root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, project.root / name)
    assert verify_record(project.root / name)[1]


def test_nothing_of_a_record_reaches_the_terminal_as_a_command_to_it(project: Project, commit: str) -> None:
    path = record(project, commit)
    made = Record.model_validate_json(path.read_bytes())
    nasty = "\x1b[2J\x07\x9b31m\r\nNo problem was found: \u202edetsurt\u2028"
    receipt = made.receipt.model_copy(update={"hardware": nasty, "versions": {nasty: nasty}, "finished": nasty, "command": nasty})
    changes = {"receipt": receipt, "parameters": {nasty: nasty}, "values": {nasty: Value(value=2.0, unit="fraction")}}
    for more in ({}, {"stage": f"palette,seed=0{nasty}"}, {"parts": {nasty: nasty}}, {"signature": nasty}):
        write_record(path, made.model_copy(update={**changes, **more}))
        done = igpt("verify", str(path), root=project.root)
        assert done.returncode == 1
        assert not [c for c in done.stdout + done.stderr if not c.isprintable() and c != "\n"]
        assert "\\x1b[2J" in done.stdout
        assert not [line for line in done.stdout.splitlines() if line.startswith("No problem")]
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": "\\u001b[2J"'))
    done = igpt("verify", str(path), root=project.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "\x1b" not in done.stderr


def test_a_commit_that_is_not_here_and_inputs_that_have_changed_are_named(project: Project, commit: str) -> None:
    said, trusted = verify_record(record(project, "0123456789abcdef"))
    assert not trusted
    assert "its commit is not in this repository" in said
    path = record(project, commit)
    notebook = project.notebooks / "palette.ipynb"
    notebook.write_text(notebook.read_text().replace("colours = 16", "colours = 17"))
    said, trusted = verify_record(path)
    assert not trusted
    assert "parameter colours" in said


def test_mistakes_are_one_sentence(project: Project) -> None:
    done = igpt("verify", "absent.json", root=project.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (project.root / "text.json").write_text("not a record")
    with pytest.raises(UsageError, match="is not a record"):
        verify_record(project.root / "text.json")


@pytest.mark.slow
def test_what_the_executed_notebook_shows_is_held_against_the_record(project: Project, commit: str) -> None:
    igpt("run", "palette,seed=0", root=project.root)
    path = project.records / "tiny" / "palette,seed=0.json"
    said, undoubted = verify_record(path)
    assert undoubted
    assert "with its executed notebook" in said
    run = next(project.runs.glob("palette,seed=0-*"))
    found = Record.model_validate_json(path.read_bytes())
    other = found.values["rms_error"].model_copy(update={"value": 0.99})
    machine = found.receipt.model_copy(update={"hardware": "another machine"})
    for changes in ({"values": {"rms_error": other}}, {"values": {}}, {"series": {}}, {"receipt": machine}):
        write_record(path, found.model_copy(update=changes))
        said, undoubted = verify_record(path)
        assert not undoubted
        assert "notebook.ipynb shows another record" in said
    elsewhere = found.receipt.model_copy(update={"hardware": "another machine", "finished": "2026-01-01T00:00:00+00:00"})
    write_record(path, found.model_copy(update={"receipt": elsewhere}))  # a genuine run of the same stage
    assert verify_record(path)[1]
    write_record(path, found.model_copy(update={"values": {"rms_error": other}, "receipt": elsewhere}))
    assert "by another run" in verify_record(path)[0]
    write_record(path, found.model_copy(update={"values": {"rms_error": other}}))
    assert "has the same time of finishing, and differs in values" in verify_record(path)[0]
    write_record(path, found)
    taken = project.root / "taken" / "record.json"
    taken.parent.mkdir()
    shutil.copy(run / "notebook.ipynb", taken.parent)
    shutil.rmtree(run)
    write_record(taken, found.model_copy(update={"values": {"rms_error": other}}))
    assert f"{taken.parent / 'notebook.ipynb'} shows another record" in verify_record(taken)[0]
    notebook = taken.parent / "notebook.ipynb"
    notebook.write_text(notebook.read_text().replace("colours = 16", "colours = 17").replace("Record of", "Of"))
    assert "its parameter colours is 16" in verify_record(taken)[0]
    notebook.write_text("{")
    assert "cannot be read" in verify_record(taken)[0]


@pytest.mark.slow
def test_a_repetition_finds_the_same_and_shows_what_differs(project: Project, commit: str) -> None:
    igpt("run", "palette,seed=0", root=project.root)
    path = project.records / "tiny" / "palette,seed=0.json"
    found = Record.model_validate_json(path.read_bytes())
    wide = found.values["rms_error"].model_copy(update={"value": 0.99, "low": 0.0, "high": 1e9})
    write_record(path, found.model_copy(update={"values": {"rms_error": wide, "invented": wide}}))
    said, undoubted = verify_record(path, repeat=True)
    assert not undoubted
    assert "repeated here, invented differs" in said
    assert "repeated here, rms_error differs" in said
    assert "Repeated here, its 2 values came out: 1 different, 1 missing." in said
    write_record(path, found)
    said, undoubted = verify_record(path, repeat=True)
    assert undoubted
    assert "Repeated here, its 1 values came out: 1 the same." in said
    assert "not computed again" not in said
