"""Submissions of which the scheduler has not said whether it took them, and jobs of others that it does not show."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, ROOT, wait_until

from igpt.companion.results.record import read_record
from igpt.companion.slurm.ledger import Array, Job, JobStatus
from igpt.companion.slurm.scheduler import GRACE, HIDDEN_DAYS
from igpt.companion.slurm.status import cancel_targets, status_text
from igpt.companion.slurm.submit import resume, submit_targets
from igpt.errors import UsageError

if TYPE_CHECKING:
    from slurm_checkout import Checkout, Cluster

pytest_plugins = ("slurm_checkout",)
pytestmark = [pytest.mark.slow, pytest.mark.slurm]

PROBE = "linear_probe,model=tiny-s,seed=0"
PALETTE = "palette,seed=0"


def waits(checkout: Checkout) -> str:
    """A profile whose jobs wait in the queue: the cluster has no room for them until their limit is lifted."""
    return checkout.profile(options={"begin": "now+1hour"})


def titles() -> list[str]:
    """The arrays in the queue, a line each job."""
    return subprocess.run(["squeue", "-h", "-r", "-o", "%j"], capture_output=True, text=True, check=True).stdout.split()


@contextmanager
def stopped_controller(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A controller that hears nothing for a while, as one that is busy, and commands that wait for it for five seconds only."""
    settings = (cluster.folder / "slurm.conf").read_text()
    (folder / "slurm.conf").write_text(settings.replace("MessageTimeout=60", "MessageTimeout=5"))
    pid = int((cluster.folder / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


def replace_program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script before one of the scheduler's programs, whose own path is `$REAL`."""
    real = shutil.which(name)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def submit_and_die(checkout: Checkout, profile: str) -> None:
    """A submission that is killed on its way."""
    command = [sys.executable, "-m", "igpt", "submit", PROBE, "--profile", profile]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done


def age(checkout: Checkout, seconds: float) -> None:
    """Have all arrays be submitted so long ago."""
    then = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="milliseconds")
    for array in checkout.ledger.arrays():
        checkout.ledger.write(array.model_copy(update={"submitted": then}))


def say(checkout: Checkout, array: Array, status: JobStatus) -> None:
    """Have an array's first job write its status."""
    Job(checkout.ledger, array, 0).status_path.write_text(status.model_dump_json())


def the_array(checkout: Checkout) -> Array:
    (array,) = checkout.ledger.arrays()
    return array


def test_a_submission_without_an_answer_is_found_again_and_does_its_work(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = waits(checkout)
    with (
        stopped_controller(cluster, tmp_path, monkeypatch),
        pytest.raises(UsageError, match=rf"the scheduler has not said whether it takes {PALETTE}.*: run the same command again"),
    ):
        checkout.submit(PROBE, profile=profile)
    array = the_array(checkout)
    assert array.job is None
    wait_until(lambda: array.title in titles())  # accepted, though nobody waits for the answer any more
    row = checkout.row(PALETTE)
    assert row.state == "queued"
    assert row.job == the_array(checkout).job
    assert checkout.submit(PROBE, profile=profile).startswith("2 jobs submitted")
    assert len(titles()) == len(set(titles())) == 3
    subprocess.run(["scontrol", "update", f"JobId={row.job}", "StartTime=now"], check=True)
    checkout.wait_for(PALETTE, "done", "failed", "lost")
    assert checkout.row(PALETTE).state == "done", checkout.logs()
    cancel_targets([])


def test_the_status_is_told_without_the_controller_and_again_with_it(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.submit(PALETTE, profile=waits(checkout))
    with stopped_controller(cluster, tmp_path, monkeypatch):
        said = " ".join(status_text([], every=False).split())
        assert "the scheduler could not be asked: SLURM's controller, slurmctld, does not answer: try again when" in said
        assert said.endswith("1 job: 1 unknown; 0.00 GPU-hours used, 0.00 planned")
        with pytest.raises(UsageError, match="^SLURM's controller, slurmctld, does not answer"):
            cancel_targets([])
    assert checkout.row(PALETTE).why == "waits for its start time (BeginTime)"
    assert cancel_targets([]).startswith("1 job cancelled")


def test_a_submission_killed_after_sbatch_was_called_is_found_and_cancelled(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        replace_program(tmp_path / "programs", "sbatch", '$REAL "$@"; kill -9 $PPID', patch)
        submit_and_die(checkout, waits(checkout))
    assert the_array(checkout).job is None
    assert cancel_targets([]) == "1 job cancelled; `igpt resume` queues them again"
    row = checkout.wait_for(PALETTE, "cancelled")
    assert row.job == the_array(checkout).job


def test_a_job_that_was_cancelled_by_hand_as_it_waited_and_is_forgotten_is_kept_as_such(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.submit(PALETTE, profile=waits(checkout))
    subprocess.run(["scancel", str(the_array(checkout).job)], check=True)
    replace_program(tmp_path / "programs", "squeue", "exit 0", monkeypatch)  # as after MinJobAge
    assert cancel_targets([]) == "nothing to cancel: no job is queued or running"
    assert checkout.job(PALETTE).end == "CANCELLED"  # for who may not see the queue


def test_a_submission_killed_as_it_called_sbatch_is_made_anew_once_it_can_no_longer_arrive(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        replace_program(tmp_path / "programs", "sbatch", "kill -9 $PPID", patch)
        submit_and_die(checkout, waits(checkout))
    first = the_array(checkout)
    with checkout.ledger.alone():  # another submission
        row = checkout.row(PALETTE)
        assert (row.state, row.why) == ("queued", "is being submitted")
    row = checkout.row(PALETTE)
    assert row.state == "unknown"
    assert re.fullmatch(r"its submission had no answer: run the same `igpt submit` after \S+ \S+", row.why)
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=f"{PALETTE} was submitted at .* without an answer, .*: run this again after"):
            submit_targets([PROBE], None, waits(checkout), dry_run=dry_run, dirty=False)
    assert resume([]) == "nothing to resume: no job has failed or is lost"
    assert "may be queued and was not cancelled" in cancel_targets([])
    assert checkout.ledger.arrays() == [first]
    age(checkout, GRACE + 1)
    row = checkout.row(PALETTE)
    assert (row.state, row.why) == ("lost", "its submission was cut off and has not arrived; `igpt resume` submits it")
    assert checkout.submit(PROBE, profile=waits(checkout)).startswith("3 jobs submitted")
    assert len(titles()) == len(set(titles())) == 3
    assert cancel_targets([]).startswith("3 jobs cancelled")


def test_a_submission_killed_before_it_called_sbatch_is_resumed_at_once(
    cluster: Cluster, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("submitit.core.utils.DelayedSubmission.dump", kill)
        checkout.submit(PALETTE, profile=waits(checkout))
    assert the_array(checkout).job is None
    assert checkout.row(PALETTE).state == "lost"
    assert resume([]).startswith("1 job submitted again")
    assert the_array(checkout).job
    assert cancel_targets([]).startswith("1 job cancelled")


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1", True),
        ("echo 'sbatch: fatal: Unable to process configuration file' >&2; exit 1", True),
        ("echo 'sbatch: unrecognized option --colour' >&2; exit 1", True),
        ("echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1", False),
        ("echo 'sbatch: error: Batch job submission failed: Unexpected message received' >&2; exit 1", False),
        ("echo 'sbatch: error: Batch job submission failed: Transport endpoint is not connected' >&2; exit 1", False),
        ("echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1", False),
        ("echo 'sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received' >&2; exit 1", False),
        ("kill -9 $$", False),
        ("echo 'some text'", False),
        ("exit 1", False),
    ],
)
def test_only_a_clear_refusal_withdraws_an_array(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, refused: bool
) -> None:
    replace_program(tmp_path / "programs", "sbatch", script, monkeypatch)
    with pytest.raises(
        UsageError,
        match="the scheduler refuses it|nothing was submitted: SLURM is not set up"
        if refused
        else "the scheduler has not said whether it takes",
    ):
        checkout.submit(PALETTE)
    assert len(checkout.ledger.arrays()) == (0 if refused else 1)


def test_an_answer_that_was_lost_is_made_up_for_at_once(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    replace_program(tmp_path / "programs", "sbatch", f"$REAL \"$@\" > /dev/null; echo '{said}' >&2; exit 1", monkeypatch)
    stages = [f"palette,seed={seed}" for seed in range(3)]  # one array
    assert checkout.submit(*stages).startswith("3 jobs submitted in 1 array")
    for seed, stage in enumerate(stages):
        assert checkout.wait_for(stage, "done", "failed", "lost").state == "done", checkout.logs()
        record = read_record(checkout.folder(stage) / "record.json")
        assert record is not None
        assert record.values["answer"].value == seed + 0.5


@pytest.fixture
def private(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A scheduler that hides others' jobs, as far as this can be had with one user: its setting, and a squeue that is blind."""
    path = cluster.folder / "slurm.conf"
    settings = path.read_text()
    try:
        path.write_text(f"{settings}\nPrivateData=jobs\n")
        subprocess.run(["scontrol", "reconfigure"], check=True, timeout=PATIENCE)
        replace_program(tmp_path / "programs", "squeue", "exit 0", monkeypatch)
        yield
    finally:
        path.write_text(settings)
        subprocess.run(["scontrol", "reconfigure"], check=True, timeout=PATIENCE)


def test_anothers_job_that_the_scheduler_hides_counts_as_at_work_until_something_says_that_it_ended(
    checkout: Checkout, private: None, cluster: Cluster
) -> None:
    profile = waits(checkout)
    checkout.submit(PALETTE, profile=profile)
    mine = the_array(checkout)
    subprocess.run(["scancel", str(mine.job)], check=True)
    ledger = checkout.ledger
    ledger.write(mine.model_copy(update={"by": "anna on login2"}))

    def submit() -> str:
        return submit_targets([PALETTE], None, profile, dry_run=False, dirty=False)

    hidden = rf"{PALETTE} is job {mine.job}, a job of anna that PrivateData hides: it counts as queued or running until \S+ \S+, or until anna runs `igpt cancel`"
    assert re.fullmatch(rf"nothing to submit: 0 of 1 stage finished, 1 queued or running; {hidden}", submit())
    assert resume([]) == "nothing to resume: no job has failed or is lost"
    assert re.fullmatch(f"nothing to cancel: no job is queued or running; {hidden}", cancel_targets([]))
    row = checkout.row(PALETTE)
    assert row.state == "queued"
    assert row.why.startswith("a job of anna that PrivateData hides: ")

    say(checkout, mine, JobStatus(state="running"))
    assert checkout.row(PALETTE).state == "running"
    assert submit().startswith("nothing to submit")
    long_ago = time.time() - 60 * mine.minutes - 1
    os.utime(Job(ledger, mine, 0).status_path, (long_ago, long_ago))
    age(checkout, 86400)
    assert checkout.row(PALETTE).state == "lost"  # beyond its limit, without a word
    say(checkout, mine, JobStatus(state="stopped", why="preempted: queued again"))
    assert checkout.row(PALETTE).state == "queued"
    for status in (
        JobStatus(state="failed", why="bad luck"),
        JobStatus(state="cancelled"),
        JobStatus(state="stopped", why="ended by the scheduler"),
    ):
        say(checkout, mine, status)
        assert checkout.row(PALETTE).state == status.state
    Job(ledger, mine, 0).status_path.unlink()
    assert checkout.row(PALETTE).state == "queued"
    checkout.job(PALETTE).keep_end("CANCELLED")  # as anna's own commands do
    assert checkout.row(PALETTE).state == "cancelled"
    (ledger.folder / mine.token / "end-0").unlink()
    age(checkout, 86400 * HIDDEN_DAYS + 1)
    assert checkout.row(PALETTE).state == "lost"
    assert submit().startswith("1 job submitted")
    subprocess.run(["scancel", *(str(array.job) for array in ledger.arrays())], check=True)


def test_the_accounting_says_of_a_hidden_job_that_it_has_ended(
    checkout: Checkout, private: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = waits(checkout)
    checkout.submit(PALETTE, profile=profile)
    mine = the_array(checkout)
    subprocess.run(["scancel", str(mine.job)], check=True)
    checkout.ledger.write(mine.model_copy(update={"by": "anna on login2"}))
    for state, found in (("RUNNING", "queued"), ("CANCELLED by 1000", "cancelled")):
        replace_program(
            tmp_path / "programs", "sacct", f"echo '{mine.title}|{mine.job}|{state}|00:00:00|None assigned'", monkeypatch
        )
        assert checkout.row(PALETTE).state == found


def test_anothers_submission_without_an_answer_is_left_to_them(checkout: Checkout, private: None) -> None:
    profile = waits(checkout)
    checkout.submit(PALETTE, profile=profile)
    mine = the_array(checkout)
    subprocess.run(["scancel", str(mine.job)], check=True)
    checkout.ledger.write(mine.model_copy(update={"by": "anna on login2", "job": None}))
    age(checkout, 2 * GRACE)
    with pytest.raises(UsageError, match=f"{PALETTE} was submitted at .* without an answer, .* or have anna run it"):
        checkout.submit(PALETTE, profile=profile)
    age(checkout, 86400 * HIDDEN_DAYS + 1)
    assert checkout.submit(PALETTE, profile=profile).startswith("1 job submitted")
    subprocess.run(["scancel", *(str(array.job) for array in checkout.ledger.arrays())], check=True)
