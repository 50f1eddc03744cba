"""A job's parts that need no scheduler."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, ROOT, wait_until

from igpt.companion.results.signature import Signature
from igpt.companion.run.execute import StageStopped
from igpt.companion.slurm.job import StageJob, _kept_work, _Session
from igpt.companion.slurm.ledger import Job, JobStatus
from igpt.companion.stage import Stage
from igpt.files import write_text

if TYPE_CHECKING:
    from slurm_checkout import Checkout

pytest_plugins = ("slurm_checkout",)

CALL = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))())"


def a_job(checkout: Checkout, code: Path = ROOT) -> StageJob:
    from slurm_checkout import an_array

    array = an_array(nodes=2, snapshot=str(code))
    return StageJob(Stage.of("palette", seed=0), Signature({}), Job(checkout.ledger, array, 0), signal_seconds=20)


def start(job: StageJob, folder: Path, task: int) -> subprocess.Popen[str]:
    """One of the job's tasks, as a node starts it."""
    path = folder / "job.pickle"
    path.write_bytes(pickle.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "SLURM_PROCID": str(task), "SLURM_JOB_ID": "7"}
    environment["SLURM_LAUNCH_NODE_IPADDR"] = "127.0.0.1"
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(path)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_further_node_ends_with_all_its_processes_once_the_stage_is_done(checkout: Checkout, tmp_path: Path) -> None:
    job = a_job(checkout)
    member = start(job, tmp_path, task=1)
    try:
        wait_until(lambda: children(member.pid))  # it has joined the group, and waits for a training that never begins
        (child,) = children(member.pid)
        write_text(job.job.status_path, JobStatus(state="done").model_dump_json())
        out, error = member.communicate(timeout=PATIENCE)  # it waited for a minute
    finally:
        member.kill()
    assert (out, member.returncode) == ("the training processes of this node have ended\n", 0), error
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("task", [0, 1])
def test_a_job_refuses_code_other_than_its_snapshots(checkout: Checkout, tmp_path: Path, task: int) -> None:
    job = a_job(checkout, checkout.root)
    done = start(job, tmp_path, task)
    _, error = done.communicate(timeout=PATIENCE)
    assert done.returncode != 0
    assert error.splitlines()[-1] == (
        f"igpt.errors.UsageError: palette,seed=0 was submitted with the code in {checkout.root}, but this job would run the code"
        f" in {ROOT}: let the profile's python use PYTHONPATH, and submit again if the first folder is gone"
    )
    assert job.job.state == ("failed" if task == 0 else "")


def test_setup_lines_count_towards_the_time_limit(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job(checkout)  # with a limit of one minute
    job = replace(job, job=replace(job.job, array=job.job.array.model_copy(update={"minutes": 30})), signal_seconds=10)
    job.job.folder.mkdir(parents=True)
    for begun, why in ((time.time(), "preempted"), (time.time() - 1790, "its time limit came")):
        monkeypatch.setenv("IGPT_JOB_BEGUN", str(begun))
        session = _Session(job)
        monkeypatch.setattr(session, "ended", True)
        monkeypatch.setattr(session, "failure", StageStopped("stopped"))
        assert session.stop() is not None
        assert job.job.status is not None
        assert job.job.status.why == f"{why}: queued again"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("checkpoint-0000005.safetensors", True),
        ("tuned/checkpoint-0000005.safetensors", True),
        ("search.safetensors", True),
        ("trained/features-0/progress.json", True),
        ("trained/search-003.json", True),
        ("features-4.json", True),
        ("progress.json", False),
        ("metrics.jsonl", False),
        (".notebook.7.part.ipynb", False),
        ("stop", False),
    ],
)
def test_work_that_is_kept_is_told_from_what_a_stage_only_says(tmp_path: Path, name: str, counts: bool) -> None:
    seen = [_kept_work(tmp_path)]
    for moment in (1, 2):
        write_text(tmp_path / name, "{}")
        os.utime(tmp_path / name, ns=(moment, moment))
        seen.append(_kept_work(tmp_path))
    assert [seen[0] != seen[1], seen[1] != seen[2]] == [counts, counts]
