"""What `igpt clean` leaves alone because jobs need it; the scheduler here is a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import igpt_here, run_of

from igpt.companion.results.signature import Signer
from igpt.companion.run.folder import run_folder
from igpt.companion.slurm.ledger import Array, Job, JobStatus, Ledger, Listed
from igpt.companion.stage import Stage
from igpt.project import Project

if TYPE_CHECKING:
    from slurm_checkout import Answers

pytest_plugins = ("slurm_checkout",)

EVERYTHING = ("stale", "failed", "unfinished", "parts", "snapshots", "--delete")


def snapshot(project: Project, name: str) -> Path:
    """The code of some jobs, with its link to the runs."""
    folder = project.runs / ".snapshots" / name
    (folder / "igpt").mkdir(parents=True)
    (folder / "igpt" / "model.py").write_bytes(bytes(10_000))
    (folder / "runs").symlink_to(project.runs, target_is_directory=True)
    return folder


def submitted(ledger: Ledger, token: str, code: Path, folder: str) -> Array:
    """A job as `igpt submit` leaves it."""
    from slurm_checkout import an_array

    listed = Listed(name=folder.rpartition("-")[0], folder=folder, planned=0.5)
    array = an_array(token=token, number=int(token, 16), job=str(int(token, 16)), snapshot=str(code), stages=(listed,))
    ledger.write(array)
    (ledger.folder / token).mkdir()
    return array


def run_without_record(project: Project, name: str, *files: str) -> Path:
    folder = project.runs / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(bytes(1000))
    return folder


@pytest.mark.parametrize("known", ["queued", "running", "hidden", "unreachable", "unanswered"])
def test_what_a_job_needs_stays_until_it_has_ended(
    project: Project, answers: Answers, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(project)
    ours, forgotten, part = (snapshot(project, name) for name in ("a1", "b2", ".c3.77.part"))
    folder = run_without_record(project, f"palette,seed=1-{'1' * 12}", "failed.ipynb", "checkpoint-0000010", ".x.part")
    array = submitted(ledger, "01", ours, folder.name)
    if known in ("queued", "running"):
        answers.say(f"{array.title}|1|{'PENDING' if known == 'queued' else 'RUNNING'}|0:00||None")
    elif known == "hidden":
        ledger.write(array.model_copy(update={"by": "anna on login2"}))
        answers.program("scontrol", "echo 'PrivateData             = jobs'")
        Job(ledger, array, 0).status_path.write_text(JobStatus(state="running").model_dump_json())
    elif known == "unreachable":
        answers.program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    else:
        from datetime import UTC, datetime

        ledger.write(array.model_copy(update={"job": None, "submitted": datetime.now(UTC).isoformat()}))
        (ledger.folder / "01" / ".submission_file_0a.sh").touch()
    done = igpt_here("clean", *EVERYTHING, root=project.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.exists()
    assert (folder / ".x.part").exists()
    assert ours.exists()
    assert not forgotten.exists()
    assert not part.exists()
    assert project.runs.exists()  # which each snapshot links to
    said = igpt_here("clean", root=project.root).stdout
    assert "kept: 1 runs at work" in said
    assert "kept: 1 snapshots that jobs need" in said
    assert ("the scheduler could not be asked" in said) == (known == "unreachable")
    assert {path.name for path in ledger.folder.glob("*.json")} == {"01.json"}  # what was submitted stays known


def test_the_code_of_a_failed_job_stays_since_resume_needs_it_until_the_stage_is_finished(
    project: Project, answers: Answers
) -> None:
    ledger = Ledger(project)
    first, second = snapshot(project, "a1"), snapshot(project, "b2")
    name = f"palette,seed=1-{'1' * 12}"
    for token, code in (("01", first), ("02", second)):  # the same stage again
        array = submitted(ledger, token, code, name)
        Job(ledger, array, 0).status_path.write_text(JobStatus(state="failed", why="bad luck").model_dump_json())
    assert igpt_here("clean", "--delete", root=project.root).stdout.startswith("1 deleted, ")
    assert not first.exists()
    assert second.exists()


@pytest.mark.parametrize(("current", "stays"), [(True, False), (False, True)])
def test_old_runs_stay_while_a_job_of_other_code_may_read_them(
    project: Project, answers: Answers, current: bool, stays: bool
) -> None:

    old = run_of(project, 3, code="older")
    stage = Signer(project.notebooks).canonical(Stage.of("palette", seed=1))
    name = run_folder(project, stage, Signer(project.notebooks).sign(stage)).name if current else f"palette,seed=1-{'1' * 12}"
    array = submitted(Ledger(project), "01", snapshot(project, "a1"), name)
    answers.say(f"{array.title}|1|PENDING|0:00||Dependency")
    igpt_here("clean", "--delete", root=project.root)
    assert old.exists() == stays
    answers.say()
    igpt_here("clean", "--delete", root=project.root)
    assert not old.exists()


def test_a_submission_at_work_is_waited_for(project: Project, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(project)
    code = snapshot(project, "a1")
    ledger.folder.mkdir()
    monkeypatch.setattr("igpt.companion.slurm.ledger.Ledger.alone", lambda self: alone(self, patience=0.1))
    from filelock import FileLock

    with FileLock(ledger.folder / ".lock"):
        done = igpt_here("clean", "--delete", root=project.root)
    assert done.returncode == 2
    assert code.exists()


_ALONE = Ledger.alone


def alone(ledger: Ledger, patience: float):  # type: ignore[no-untyped-def]
    """The lock with less patience."""
    return _ALONE(ledger, patience)


def test_old_runs_stay_while_a_job_that_reads_them_is_to_be_resumed(project: Project, answers: Answers) -> None:
    old, other = (run_of(project, seed, code="older") for seed in (0, 3))
    child = run_without_record(project, f"pretrain,model=tiny-s,objective=autoregressive,seed=0-{'1' * 12}", "checkpoint-0000010")
    ledger = Ledger(project)
    array = submitted(ledger, "01", snapshot(project, "a1"), child.name)
    Job(ledger, array, 0).status_path.write_text(JobStatus(state="stopped").model_dump_json())
    answers.say()
    igpt_here("clean", "--delete", root=project.root)
    assert old.exists()
    assert child.exists()
    assert not other.exists()
    assert "kept: 1 runs that what is at work, or is to be resumed, may read" in igpt_here("clean", root=project.root).stdout
