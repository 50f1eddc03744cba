"""What is said of jobs, from what they left and what a scheduler answers; the scheduler here is a file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from igpt.errors import UsageError
from igpt.project import Project
from igpt.results.record import Record, read_record, write_record
from igpt.run.folder import run_folder
from igpt.run.local import plan_stages
from igpt.slurm.doctor import examine
from igpt.slurm.ledger import Array, Ledger, Listed, Mark, homes, last_word
from igpt.slurm.status import Row, cancel_targets, log_lines, rows, status_text, watch_status
from igpt.slurm.submit import resume
from igpt.stage import Stage

if TYPE_CHECKING:
    from slurm_checkout import Checkout

pytest_plugins = ("slurm_checkout",)

NAME = "palette,seed=0"


@dataclass
class Answers:
    """A scheduler's commands: one that prints a file, one that keeps what it was asked, and no more."""

    folder: Path

    def say(self, *lines: str) -> None:
        """Have the queue be these lines, ``title|job|index|state|reason`` each."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def cancelled(self) -> list[str]:
        return (self.folder / "cancelled").read_text().split() if (self.folder / "cancelled").exists() else []


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """A scheduler that knows of no job yet."""
    folder = tmp_path / "scheduler"
    folder.mkdir()
    programs = {
        "squeue": f"cat {folder}/queue",
        "scancel": f'echo "$@" >> {folder}/cancelled',
        "sbatch": "exit 1",
        "srun": "exit 1",
    }
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    found = Answers(folder)
    found.say()
    return found


def submitted(ledger: Ledger, name: str = NAME, *, token: str = "0a", job: str = "7") -> Array:
    """A job as `igpt submit` leaves it."""
    listed = Listed(name=name, folder=f"{name}-{'0' * 12}", planned=0.5)
    array = Array(
        token=token,
        number=1,
        job=job,
        profile="any",
        snapshot="/",
        submitted="2026",
        by="",
        gpus=0,
        nodes=1,
        minutes=1,
        stages=(listed,),
    )
    ledger.write(array)
    ledger.logs(token).mkdir()
    return array


def row(ledger: Ledger) -> Row:
    (found,) = rows(ledger, [])
    return found


def say(ledger: Ledger, array: Array, mark: Mark) -> None:
    """What the job says of itself."""
    ledger.mark_path(array.token, 0).write_text(mark.model_dump_json())


def log(ledger: Ledger, array: Array, text: str, task: int = 0) -> None:
    """What stands in the log of one of the job's tasks."""
    (ledger.logs(array.token) / f"{array.job}_{task}_log.err").write_text(text)


@pytest.fixture
def record(checkout: Checkout) -> Record:
    """A valid record of the palette, from a run on this machine."""
    checkout.submit(NAME, profile="local")
    found = read_record(checkout.folder(NAME) / "record.json")
    assert found is not None
    return found


def test_only_a_valid_record_of_the_stage_is_done(
    checkout: Checkout, record: Record, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_stages(checkout.project, [Stage.of("palette", seed=0)])
    folder = run_folder(checkout.project, planned.stage, planned.signature)
    array = submitted(checkout.ledger)
    listed = Listed(name=planned.stage.name, folder=folder.name, planned=0.5)
    checkout.ledger.write(array.model_copy(update={"stages": (listed,)}))
    say(checkout.ledger, array, Mark(state="done"))
    assert row(checkout.ledger).state == "done"
    path = folder / "record.json"
    whole = path.read_text()
    others = [record.model_copy(update={"signature": "0" * 64}), record.model_copy(update={"stage": "palette,seed=1"})]
    for content in (whole[: len(whole) // 2], "", "{}", *(other.model_dump_json() for other in others)):
        path.write_text(content)
        assert row(checkout.ledger).state == "failed"
        assert row(checkout.ledger).why == f"{path} is not a valid record; `igpt resume` sets it aside and runs the stage again"
        assert f"wrong  records: {path} is not a valid record (1 in all)" in examine("local")[0]
        (text,) = watch_status([], every=False)  # and there is nothing to wait for
        assert text.endswith("1 jobs: 1 failed; 0.00 GPU-hours used, 0.50 planned")
    path.unlink()
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("lost", "its record is gone; `igpt resume` runs it again")
    write_record(path, record)
    assert row(checkout.ledger).state == "done"


@pytest.mark.parametrize(
    ("by_hand", "why"),
    [
        # As SLURM 22.05 writes it.
        (
            "srun: Job step aborted: Waiting up to 5 seconds for job step to finish.\n"
            "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***\n"
            "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T19:19:05 ***\n"
            "srun: error: n1: task 0: Terminated\n",
            "by scancel",
        ),
        ("", "by scancel"),
    ],
)
def test_a_cancelled_job_stays_so_when_the_scheduler_has_forgotten_it(
    checkout: Checkout, answers: Answers, by_hand: str, why: str
) -> None:
    ledger = checkout.ledger
    array = submitted(ledger)
    say(ledger, array, Mark(state="stopped", why="ended by the scheduler"))
    if by_hand:
        log(ledger, array, by_hand)
    else:
        answers.say(f"{array.title}|7|N/A|PENDING|Priority")
        assert cancel_targets([NAME]).startswith("1 jobs cancelled")
        assert answers.cancelled() == ["--quiet", "7"]
        answers.say()
    assert (row(ledger).state, row(ledger).why) == ("cancelled", why)


def test_what_the_scheduler_said_of_a_job_once_is_kept(checkout: Checkout, answers: Answers) -> None:
    array = submitted(checkout.ledger)
    log(checkout.ledger, array, "srun: error: n1: task 0: Killed\n")
    for state, found, why in (
        ("CANCELLED", "cancelled", "by scancel"),
        ("TIMEOUT", "lost", "its time limit came before it could stop; `igpt resume` continues it"),
        ("NODE_FAIL", "lost", "its node was lost; `igpt resume` continues it"),
        ("OUT_OF_MEMORY", "lost", "killed for memory: raise memory_gib in the profile; `igpt resume` continues it"),
        ("BOOT_FAIL", "lost", "n1: task 0: Killed; `igpt resume` continues it"),
    ):
        for line in ([f"{array.title}|7|N/A|{state}|None"], []):
            answers.say(*line)
            assert (row(checkout.ledger).state, row(checkout.ledger).why) == (found, why)


@pytest.mark.parametrize(
    ("state", "reason", "why"),
    [
        ("PENDING", "JobHeldUser", "held (JobHeldUser): `scontrol release 7` releases it"),
        ("PENDING", "launch failed requeued held", "held (launch failed requeued held): `scontrol release 7` releases it"),
        ("PENDING", "job_requeued_in_held_state", "held (job requeued in held state): `scontrol release 7` releases it"),
        ("SPECIAL_EXIT", "None", "held (SPECIAL_EXIT): `scontrol release 7` releases it"),
        ("PENDING", "JobHoldMaxRequeue", "held (JobHoldMaxRequeue): `scontrol release 7` releases it"),
        ("PENDING", "JobHeldAdmin", "held by an administrator: ask for `scontrol release 7`"),
        (
            "PENDING",
            "DependencyNeverSatisfied",
            "held, since a job it waits for has failed: `igpt cancel` it, then `igpt resume`",
        ),
    ],
)
def test_a_held_job_says_what_lets_it_go_on_and_nobody_waits_for_it(
    checkout: Checkout, answers: Answers, state: str, reason: str, why: str
) -> None:
    array = submitted(checkout.ledger)
    say(checkout.ledger, array, Mark(state="stopped", why="ended by the scheduler"))
    answers.say(f"{array.title}|7|N/A|{state}|{reason}")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("held", why)
    (text,) = watch_status([], every=False)
    assert text.endswith("1 jobs: 1 held; 0.00 GPU-hours used, 0.50 planned")
    assert resume([]) == f"nothing to resume: no job has failed or is lost; job 7 is {why}"
    answers.say(f"{array.title}|7|N/A|PENDING|BeginTime")
    assert (row(checkout.ledger).state, row(checkout.ledger).why) == ("queued", "ended by the scheduler: queued again")


EXITED = "srun: error: n1: task 0: Exited with exit code 1\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            f"{TRACEBACK}ModuleNotFoundError: No module named 'submitit'\n{EXITED}",
            "ModuleNotFoundError: No module named 'submitit'",
        ),
        (
            f"slurmstepd-n1: error: execve(): /no/python: No such file or directory\n{EXITED}",
            "execve(): /no/python: No such file or directory",
        ),
        ("job.sh: line 9: exec: python: not found\n", "job.sh: line 9: exec: python: not found"),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)\n", "n1: task 0: Segmentation fault (core dumped)"),
        ("some warning\nsrun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (EXITED, "n1: task 0: Exited with exit code 1"),
        (
            "srun: error: Unable to create step for job 7: Job/step already completing\n",
            "Unable to create step for job 7: Job/step already completing",
        ),
        ("some warning\n", ""),
    ],
)
def test_a_jobs_own_words_come_before_those_of_srun(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "7_0_log.err").write_text(text)
    assert last_word(tmp_path / "7_0_log.err") == why


def test_a_further_node_that_fails_is_the_reason_and_not_that_the_first_was_ended(checkout: Checkout, answers: Answers) -> None:
    ledger = checkout.ledger
    array = submitted(ledger)
    say(ledger, array, Mark(state="stopped", why="ended by the scheduler"))
    ended = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026 ***\nsrun: error: n1: task 0: Exited with exit code 1\n"
    log(ledger, array, "srun: error: n2: task 1: Exited with exit code 1\n" + ended)
    log(ledger, array, f"{TRACEBACK}igpt.errors.StageError: node 1 left the group\n", task=1)
    assert (row(ledger).state, row(ledger).why) == ("failed", "igpt.errors.StageError: node 1 left the group")
    log(ledger, array, ended.replace("STEP 7.0", "JOB 7"))
    assert (row(ledger).state, row(ledger).why) == ("cancelled", "by scancel")
    log(ledger, array, ended)
    assert (row(ledger).state, row(ledger).why) == ("stopped", "ended by the scheduler; `igpt resume` continues it")


def share(checkout: Checkout, name: str, folder: Path) -> Ledger:
    """A profile of the checkout with a shared folder, and the ledger of that."""
    settings = {"shared_folder": str(folder)}
    (checkout.root / "slurm" / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return Ledger(Project(folder))


def test_jobs_in_two_shared_folders_are_found_by_what_names_them(checkout: Checkout, answers: Answers, tmp_path: Path) -> None:
    first, second = (share(checkout, name, tmp_path / name) for name in ("first", "second"))
    arrays = [submitted(first, NAME, job="7"), submitted(second, "pretrain,model=tiny-s,seed=5", token="0b", job="8")]
    answers.say(*(f"{array.title}|{array.job}|N/A|PENDING|Priority" for array in arrays))
    for number, target in (("7", "palette"), ("7", NAME), ("7", "7"), ("8", "pretrain,model=tiny-s,seed=5"), ("8", "8")):
        assert status_text([target], every=False).splitlines()[2].split()[1] == number
        list(log_lines(target, follow=False))
        assert resume([target]).startswith("nothing to resume")
    assert status_text(["7", "8"], every=False).endswith("2 jobs: 2 queued; 0.00 GPU-hours used, 1.00 planned")
    for targets in (["9"], ["palette", "9"], ["7", "palette,seed=4"]):
        for ask in (lambda t: status_text(t, every=False), cancel_targets, resume):
            with pytest.raises(UsageError, match=f"nothing was submitted under '{targets[-1]}'"):
                ask(targets)
    assert cancel_targets(["8"]).startswith("1 jobs cancelled")
    assert answers.cancelled() == ["--quiet", "8"]


def test_another_clone_sees_the_jobs_of_the_shared_folder_of_its_profiles(
    checkout: Checkout, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = share(checkout, "shared", tmp_path / "shared")
    other = tmp_path / "other"
    shutil.copytree(checkout.root, other)
    monkeypatch.setenv("IGPT_ROOT", str(other))
    assert homes(Project(other)) == [Project(other)]  # nothing was submitted there yet
    submitted(shared)
    (other / "slurm" / "profiles" / "broken.yaml").write_text("stages: [")
    (tmp_path / "again").symlink_to(tmp_path / "shared")
    share(type(checkout)(other), "again", tmp_path / "again")  # the same by another path counts once
    assert len(homes(Project(other))) == 2
    assert "1 jobs: " in status_text([NAME], every=False)


def test_another_clone_sees_the_jobs_that_it_would_have_submitted(checkout: Checkout, answers: Answers, tmp_path: Path) -> None:
    shared = Ledger(Project(tmp_path / "shared"))  # of a profile that lies outside of the checkout
    (planned,) = plan_stages(checkout.project, [Stage.of("palette", seed=0)])
    folder = run_folder(shared.home, planned.stage, planned.signature).name
    array = submitted(shared)
    shared.write(array.model_copy(update={"stages": (Listed(name=planned.stage.name, folder=folder, planned=0.5),)}))
    answers.say(f"{array.title}|7|N/A|PENDING|Priority")
    said = checkout.submit(NAME, profile=checkout.profile(shared_folder=str(shared.home.root)))
    assert said == "nothing to submit: 0 of 1 stages are finished, 1 are queued or running"
    assert status_text([], every=False).endswith("1 jobs: 1 queued; 0.00 GPU-hours used, 0.50 planned")
