"""A thousand jobs, and the cluster with its accounting. The jobs are trivial: it is the scheduling that is looked at."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, wait_until

from igpt.companion.results.plan import Plan, PlannedStage
from igpt.companion.results.signature import Signature
from igpt.companion.slurm import scheduler
from igpt.companion.slurm.ledger import Job, Ledger, user
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.submit import carry_out, prepare
from igpt.companion.stage import Stage
from igpt.project import Project

if TYPE_CHECKING:
    from slurm_checkout import Checkout, Cluster

pytest_plugins = ("slurm_checkout",)
pytestmark = [pytest.mark.slow, pytest.mark.slurm]

COUNT, SIZE = 1000, 250


def test_of_a_thousand_jobs_none_is_lost_and_none_runs_twice(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slurm_checkout import rows, squeue

    ran = tmp_path / "ran"
    ran.mkdir()
    script = tmp_path / "job.sh"
    script.write_text(f"set -C; : > {ran}/$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID || : > {ran}/twice-$$\n")
    resources = Resources(cpus=1, memory_gib=0.2, minutes=5)
    profile = Profile(partition="main", array_size=SIZE, python=f"sh {script}", srun=False, stages={"default": resources})
    stages = [Stage.of("palette", seed=seed) for seed in range(COUNT)]
    planned = {s: PlannedStage(s, Signature({"seed": s.name}), (), None) for s in stages}
    calls: Counter[str] = Counter()
    monkeypatch.setattr(subprocess, "run", counting(subprocess.run, calls))
    monkeypatch.setattr(subprocess, "check_output", counting(subprocess.check_output, calls))
    ledger = Ledger(checkout.project)

    decided = prepare("any", profile, Plan(planned), ledger)
    assert [len(batch.stages) for batch in decided.batches] == [SIZE] * (COUNT // SIZE)
    carry_out(decided, checkout.project)
    assert calls["squeue"] == 0  # nothing was submitted before, so there is nothing to ask

    again = prepare("any", profile, Plan(planned), ledger)
    done = {array.token for array in ledger.arrays()}
    queue = scheduler.look(ledger.jobs())
    waiting = sum(queue.active(job) is not None for job in ledger.jobs())
    assert len(again.batches) == 0 or waiting < COUNT  # what still waits is not submitted again
    assert len(done) == COUNT // SIZE

    calls.clear()
    looks = 0

    def over() -> bool:
        nonlocal looks
        looks += 1
        return not any(row.state in ("queued", "running") for row in rows(ledger))

    wait_until(over, said=lambda: squeue()[-2000:], every=1)
    assert calls["squeue"] == looks
    assert sum(calls.values()) == looks
    assert len(list(ran.glob("*-*"))) == COUNT
    assert not list(ran.glob("twice*"))


def counting(call, calls: Counter[str]):  # type: ignore[no-untyped-def]
    """A function of subprocess that counts which program it was called for."""

    def counted(command, *arguments, **options):  # type: ignore[no-untyped-def]
        if command[0] in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
            calls[command[0]] += 1
        return call(command, *arguments, **options)

    return counted


def test_a_cluster_with_accounting_comes_up_answers_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slurm_checkout import Cluster, an_array, rows, skip_without_slurm

    skip_without_slurm("slurmdbd", "mariadbd")
    cluster = Cluster(tmp_path / "cluster")
    try:
        assert cluster.run("up").startswith("two nodes are idle")
        assert cluster.run("up").startswith("the cluster is up already")
        assert "the cluster is up" in cluster.run("status")
        monkeypatch.setenv("SLURM_CONF", cluster.run("env").strip().partition("=")[2])
        subprocess.run(["srun", "-N2", "--gpus-per-node=1", "true"], check=True, timeout=PATIENCE)
        wait_until(lambda: "COMPLETED" in sacct(), said=sacct, every=0.5)
        assert "gres/gpu=2" in sacct()
        number = submitted_and_forgotten("igpt-0a", tmp_path, monkeypatch)
        ledger = Ledger(Project(tmp_path))
        unanswered = an_array(job=None, submitted=datetime.now(UTC).isoformat(), by=f"{user()} on here")
        jobs = [Job(ledger, unanswered, 0)]
        wait_until(lambda: scheduler.look(jobs).numbers, every=0.5)
        assert scheduler.look(jobs).numbers == {"igpt-0a": number}  # which the queue no longer knows
        ledger.write(unanswered.model_copy(update={"job": number}))
        (row,) = rows(ledger)
        assert (row.state, row.why) == ("cancelled", "by scancel")
    finally:
        cluster.run("down")
    for pid in cluster.folder.glob("*.pid"):
        assert (
            not Path(f"/proc/{pid.read_text().strip()}/exe").exists()
            or "slurm" not in Path(f"/proc/{pid.read_text().strip()}/cmdline").read_text()
        )


def submitted_and_forgotten(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The number of a job that was cancelled before it began, and a squeue that has forgotten it."""
    command = ["sbatch", "--parsable", "-J", title, "-o", "/dev/null", "--begin=now+1hour", "--wrap", "true"]
    number = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()
    subprocess.run(["scancel", number], check=True, timeout=PATIENCE)
    (folder / "programs").mkdir()
    (folder / "programs" / "squeue").write_text("#!/bin/sh\n")
    (folder / "programs" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'programs'}:{os.environ['PATH']}")
    return number


def sacct() -> str:
    return subprocess.run(
        ["sacct", "-n", "-X", "-o", "State,AllocTRES%80"], capture_output=True, text=True, timeout=PATIENCE
    ).stdout
