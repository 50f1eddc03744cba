"""What is said of a record, and what a repetition finds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import igpt, some_receipt

from igpt.errors import UsageError
from igpt.project import Project
from igpt.results.record import Record, Value, write_record
from igpt.results.signature import Signer
from igpt.run.verify import verify_record
from igpt.stage import Stage

COMMIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "first"]


@pytest.fixture
def commit(project: Project) -> str:
    """The project as a repository of one commit."""
    for command in (["git", "init", "-q"], COMMIT):
        subprocess.run(command, cwd=project.root, check=True)
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def record(project: Project, commit: str, *, dirty: bool = False, by_hand: bool = False, **changes: object) -> Path:
    signer = Signer(project.notebooks)
    stage = signer.canonical(Stage.of("palette", dataset="digits", colours=16))
    signature = signer.sign(stage)
    made = Record(
        schema_version=1,
        stage=stage.name,
        parameters=signer.parameters(stage),
        signature=signature.digest,
        parts=signature.parts,
        values={"colours": Value(value=16, unit="colours")},
        series={},
        receipt=some_receipt(stage, dirty=dirty).model_copy(
            update={"commit": commit, "notebook": "notebooks/palette.ipynb" + (", run by hand" if by_hand else "")}
        ),
    )
    path = project.root / "mine.json"
    write_record(path, made.model_copy(update=changes))
    return path


def test_a_clean_record_of_this_checkout_can_be_trusted(project: Project, commit: str) -> None:
    said, trusted = verify_record(record(project, commit))
    assert trusted
    assert "It can be trusted as it stands." in said
    assert "as this checkout stands" in said
    assert "igpt run palette,seed=0" in said
    assert len(said.splitlines()) < 24


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"dirty": True}, "uncommitted changes, which no commit can bring back"),
        ({"by_hand": True}, "run by hand"),
        ({"signature": "0" * 64}, "not that of its parts"),
        ({"stage": "palette,seed=0,colour=3"}, "has no parameter 'colour'"),
        ({"stage": "palettes,seed=0"}, "there is no experiment, table or notebook 'palettes,seed=0'"),
    ],
)
def test_each_doubt_is_named(project: Project, commit: str, changes: dict[str, object], doubt: str) -> None:
    said, trusted = verify_record(record(project, commit, **changes))  # type: ignore[arg-type]
    assert not trusted
    assert doubt in said


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
def test_a_repetition_finds_the_same_and_shows_what_differs(project: Project, commit: str) -> None:
    igpt("run", "palette,seed=0", root=project.root)
    path = project.records / "tiny" / "palette,seed=0.json"
    found = Record.model_validate_json(path.read_bytes())
    values = {**found.values, "invented": Value(value=1.0, unit="fraction")}
    write_record(path, found.model_copy(update={"values": values}))
    said, trusted = verify_record(path, repeat=True)
    assert said.count("the same") == len(found.values) > 0
    assert not trusted
    assert "repeated here, invented is another" in said
