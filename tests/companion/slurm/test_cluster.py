"""Plans as jobs of a real SLURM, and what clusters do to them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, ROOT, wait_until

from igpt.companion.report.provenance import drills_table
from igpt.companion.results.record import read_record
from igpt.companion.slurm.doctor import examine
from igpt.companion.slurm.drill import run_drill
from igpt.companion.slurm.status import cancel_targets, collect, log_lines, status_text
from igpt.companion.slurm.submit import resume
from igpt.errors import UsageError

if TYPE_CHECKING:
    from slurm_checkout import Checkout, Cluster

pytest_plugins = ("slurm_checkout",)
pytestmark = [pytest.mark.slow, pytest.mark.slurm]

PROBE = "linear_probe,model=tiny-s,seed=0"
LONG = "pretrain,model=tiny-s,seed=40"
DEAF = "pretrain,model=tiny-s,seed=17"  # looks for no file to stop by
TUNED = "fine_tune,model=tiny-s,seed=0"  # a second a step, until it is continued
TUNING = """
import time
import numpy as np
from igpt.evaluate.fine_tune import FineTuneSettings, Tuning, tune
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.runtime import Runtime
from igpt.weights.own import save_weights
before = sorted(path.parent.name for path in stage.folder.glob("*/metrics.jsonl"))
shape, weights = ModelShape(2, 16, 2, 16, 64), stage.folder / "start"
weights.mkdir(exist_ok=True)
save_weights(weights, ImageGPT(shape), Palette(np.linspace(-1, 1, 16, dtype=np.float32)[:, None]))
tuning = Tuning(weights, shape, "digits", 200, 0, (FineTuneSettings(0.01, 2, batch=16),), 0.01)
def stop():
    time.sleep(0 if before else 1)
    return stage.stopping()
found = tune(tuning, folder=stage.folder, runtime=Runtime(stop=stop), report=stage.report)
whole = tune(tuning, folder=stage.folder / "whole", runtime=Runtime())
equal = found.search == whole.search and all((found.predictions[name] == whole.predictions[name]).all() for name in whole.predictions)
values = {"equal": equal, "before": len(before), "left": len(list(stage.folder.rglob("checkpoint-*")))}
stage.write_record(values={name: {"value": float(value), "unit": "none"} for name, value in values.items()})
"""


def total_of(steps: int | None = None) -> float:
    """What the training of ``steps``, or the long one, comes to when nothing interrupts it."""
    from slurm_checkout import LONG_STEPS

    total = 0
    for done in range(steps or LONG_STEPS):
        total = (total * 31 + done) % 1000003
    return float(total)


def found(checkout: Checkout, name: str) -> dict[str, float]:
    record = read_record(checkout.folder(name) / "record.json")
    assert record is not None
    return {key: value.value for key, value in record.values.items()}


@pytest.fixture(scope="module", autouse=True)
def limited(running_cluster: Cluster, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose jobs reach their limit of a minute, submitted before all others since that takes its time."""
    from slurm_checkout import copy_of

    with copy_of(template, tmp_path_factory.mktemp("limited") / "checkout") as checkout, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(running_cluster.folder / "slurm.conf"))
        checkout.write("fine_tune", TUNING, more='dataset = "digits"\nimages = 0\nepochs = 2\nviews = 1')
        checkout.submit(LONG, DEAF, TUNED, profile=checkout.profile(signal_seconds=10, resources={"minutes": 1}))
    return checkout


def sessions(checkout: Checkout, name: str) -> int:
    """How often a job has begun."""
    status = checkout.job(name).status
    assert status is not None
    return status.sessions


def test_a_plan_runs_in_its_order_from_the_commit_that_was_submitted(cluster: Cluster, checkout: Checkout) -> None:
    assert Path.cwd() == checkout.root  # which Python would look into first
    assert checkout.submit(PROBE, profile=checkout.profile(options={"hold": True})).startswith("3 jobs submitted in 3 arrays")
    commit = checkout.git("rev-parse", "HEAD").strip()
    again = checkout.submit(PROBE)
    assert again == "nothing to submit: 0 of 3 stages finished, 3 queued or running"
    row = checkout.row("palette")
    assert (row.state, row.why) == ("held", f"held by its owner: `scontrol release {row.job}` releases it (JobHeldUser)")
    palette = checkout.root / "notebooks" / "palette.ipynb"
    palette.write_text(palette.read_text().replace("pass", "raise RuntimeError('of another time')"))
    break_code(checkout)
    for array in checkout.ledger.arrays():
        release(str(array.job))
    checkout.wait_for(PROBE, "done", "failed", "cancelled", "lost")
    assert checkout.row(PROBE).state == "done", checkout.logs()
    checkout.git("checkout", "-q", ".")
    assert found(checkout, PROBE) == {"answer": total_of(8) + 0.5}
    record = read_record(checkout.folder(PROBE) / "record.json")
    assert record is not None
    assert (record.receipt.commit, record.receipt.dirty) == (commit, False)
    assert (checkout.folder(PROBE) / "notebook.ipynb").exists()
    assert checkout.submit(PROBE) == "nothing to submit: 3 of 3 stages finished"
    assert status_text([], every=False) == "3 jobs: 3 done; 0.00 GPU-hours used, 0.00 planned"
    path = checkout.folder(PROBE) / "record.json"
    path.write_text(path.read_text()[:100])
    checkout.wait_for(PROBE, "failed")  # once its job has ended too
    assert resume([]).startswith("1 job submitted again")
    release(checkout.row(PROBE).job)
    checkout.wait_for(PROBE, "done", "failed", "cancelled", "lost")
    assert found(checkout, PROBE) == {"answer": total_of(8) + 0.5}


def release(job: str) -> None:
    """Let a job go on that was held."""
    subprocess.run(["scontrol", "release", job], check=True)


def break_code(checkout: Checkout) -> None:
    """Have whatever imports the checkout's code as it lies there fail."""
    for path in checkout.root.glob("igpt/**/*.py"):
        path.write_text("raise RuntimeError('code of another time')\n")


def test_the_same_plan_here_and_on_the_cluster_gives_the_same_records(
    cluster: Cluster, checkout: Checkout, tmp_path: Path
) -> None:
    assert checkout.submit(PROBE, profile="local") == "3 stages run, 0 finished before"
    here = found(checkout, PROBE)
    shutil.rmtree(checkout.root / "book" / "records")
    shared = type(checkout)(tmp_path / "shared")  # another disk, which the nodes see
    assert checkout.submit(PROBE, profile=checkout.profile(shared_folder=str(shared.root))).startswith("3 jobs submitted")
    shared.wait_for(PROBE, "done", "failed", "cancelled", "lost")
    assert found(shared, PROBE) == here
    assert status_text([], every=False).startswith("3 jobs: ")
    shutil.rmtree(checkout.folder(PROBE))
    assert collect().startswith("3 records collected, 0 there already")
    assert collect().startswith("0 records collected, 3 there already")


def test_each_failure_says_why_and_holds_up_only_what_stands_on_it(cluster: Cluster, checkout: Checkout) -> None:
    unlucky, hungry, full = (f"pretrain,model=tiny-s,seed={seed}" for seed in (13, 19, 23))
    checkout.submit(
        "linear_probe,model=tiny-s,seed=13", hungry, full, PROBE, profile=checkout.profile(resources={"memory_gib": 0.9})
    )
    row = checkout.wait_for("linear_probe,model=tiny-s,seed=13", "cancelled", "done", "lost")
    assert row.state == "cancelled"
    assert row.why.startswith(f"it depends on {unlucky}, which failed: ")
    assert "RuntimeError: bad luck; the notebook so far is" in row.why
    assert checkout.row(unlucky).state == "failed"
    row = checkout.wait_for(hungry, "failed", "lost", "done")  # without accounting
    assert (row.state, row.why) == ("lost", "killed for memory: raise memory_gib in the profile; `igpt resume` continues it")
    row = checkout.wait_for(full, "failed", "lost", "done")
    assert row.state == "failed"
    assert "No space left on device" in row.why
    checkout.wait_for(PROBE, "done")
    said = "\n".join(log_lines(unlucky, follow=False))
    assert "bad luck" in said
    assert "failed.ipynb" in said
    assert resume([unlucky, "linear_probe,model=tiny-s,seed=13"]).startswith("2 jobs submitted again")
    cancel_targets([])


def test_jobs_that_are_asked_to_stop_or_preempted_or_killed_continue_where_they_were(
    cluster: Cluster, checkout: Checkout
) -> None:
    asked, without_srun, preempted, killed = names = [f"pretrain,model=tiny-s,seed={seed}" for seed in (40, 41, 42, 43)]
    apart: dict[str, object] = {"options": {"exclude": "n1"}}  # from the node that one of them is to lose
    checkout.submit(asked, killed, profile=checkout.profile(**apart))
    checkout.submit(without_srun, profile=checkout.profile(srun=False, gpus_by="gres", resources={"gpus": 1}, **apart))
    checkout.submit(preempted, profile=checkout.profile(partition="low", options={"nodelist": "n1"}))
    jobs = {name: checkout.wait_for_step(name, 15).job for name in names}
    first = ["sbatch", "--parsable", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1000"]
    number = subprocess.run(first, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["scontrol", "requeuehold", str(jobs[killed])], check=True)  # as preemption without a grace time, and a hold
    subprocess.run(["scancel", "--signal=USR2", str(jobs[asked])], check=True)
    subprocess.run(["scancel", "--batch", "--signal=USR2", str(jobs[without_srun])], check=True)
    for name in (asked, without_srun, preempted):
        assert checkout.wait(name, lambda row: row.state == "queued").why == "preempted: queued again"
    row = checkout.wait_for(killed, "held", "queued", "done", "lost")
    assert row.why == f"held: `scontrol release {row.job}` releases it (job requeued in held state)"
    assert resume([killed]) == f"nothing to resume: no job has failed or is lost; job {row.job} is {row.why}"
    release(str(row.job))
    subprocess.run(["scancel", number], check=True)
    for name in names:
        checkout.wait_for(name, "done", "failed", "lost")
        assert found(checkout, name) == {"total": total_of()}
        assert sessions(checkout, name) == 2
    assert checkout.row(asked).gpu_hours_used == 0
    assert checkout.row(without_srun).gpu_hours_used > 0


def test_a_job_whose_node_is_lost_continues_on_another(cluster: Cluster, checkout: Checkout) -> None:
    checkout.submit(LONG, profile=checkout.profile(options={"exclude": "n1"}))
    job = checkout.wait_for_step(LONG, 15).job
    cluster.run("stop-node", "n2")
    try:
        checkout.wait(LONG, lambda row: row.state == "queued")
        subprocess.run(["scontrol", "update", f"JobId={job}", "ExcNodeList="], check=True)
        checkout.wait_for(LONG, "done", "failed", "lost")
    finally:
        cluster.run("start-node", "n2")
    assert found(checkout, LONG) == {"total": total_of()}


def test_a_shell_that_is_hung_up_takes_no_job_with_it(cluster: Cluster, checkout: Checkout) -> None:
    words = f"{sys.executable} -m igpt submit {PROBE} --profile {checkout.profile()} && echo submitted && sleep 600"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = subprocess.Popen(
        ["env", "--default-signal=HUP", "bash", "-c", words],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert shell.stdout is not None
    assert any(line == "submitted\n" for line in shell.stdout)
    os.killpg(shell.pid, signal.SIGHUP)
    shell.wait(PATIENCE)
    checkout.wait_for(PROBE, "done", "failed", "cancelled", "lost")
    assert found(checkout, PROBE) == {"answer": total_of(8) + 0.5}


def test_a_disk_that_is_full_ends_a_job_in_a_sentence_and_with_room_it_goes_on(
    cluster: Cluster, checkout: Checkout, small_disk: Callable[[Path, str], None]
) -> None:
    small_disk(checkout.project.runs, "4m")
    ballast = checkout.project.runs / "ballast"
    checkout.submit(LONG)
    checkout.wait_for_step(LONG, 15)
    with suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    row = checkout.wait_for(LONG, "done", "failed", "lost")
    # By whether there was room for the job to say so itself.
    assert row.why == "its disk was full: make room; `igpt resume` continues it" or "No space left on device" in row.why
    ballast.unlink()
    assert resume([LONG]).startswith("1 job submitted again")
    checkout.wait_for(LONG, "done", "failed")
    assert found(checkout, LONG) == {"total": total_of()}


def test_cancelled_jobs_stay_so_and_are_resumed(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = "palette,seed=7"
    checkout.submit(waiting, profile=checkout.profile(options={"hold": True}))
    checkout.submit(LONG)
    job = checkout.wait_for_step(LONG, 15).job
    assert cancel_targets([waiting]) == "1 job cancelled; `igpt resume` queues them again"
    subprocess.run(["scancel", job], check=True)
    for name in (LONG, waiting):
        row = checkout.wait_for(name, "cancelled", "lost", "stopped")
        assert (row.state, row.why) == ("cancelled", "by scancel")
    (checkout.job(LONG).logs / "end-0").unlink()  # as if nobody had looked: then its log says so
    (tmp_path / "squeue").write_text("#!/bin/sh\n")  # which has forgotten all jobs, as after MinJobAge
    (tmp_path / "squeue").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        assert {checkout.row(name).state for name in (LONG, waiting)} == {"cancelled"}
    break_code(checkout)  # what is resumed is planned and run by the code that was submitted
    assert resume([LONG]).startswith("1 job submitted again")
    assert cancel_targets([LONG]).startswith("1 job")


def test_two_who_submit_at_once_submit_each_stage_once(cluster: Cluster, checkout: Checkout) -> None:
    command = [sys.executable, "-m", "igpt", "submit", PROBE, "--profile", checkout.profile()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(each.communicate(timeout=PATIENCE)[0] for each in both)
    assert [text.partition(" ")[0] for text in said] == ["3", "nothing", "nothing"], said
    names = [listed.name for array in checkout.ledger.arrays() for listed in array.stages]
    assert len(names) == len(set(names)) == 3
    cancel_targets([])


def test_jobs_are_resumed_by_their_profile_from_anywhere_and_when_its_file_has_gone(
    cluster: Cluster, checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    palette = "palette,seed=0"
    given = Path(checkout.profile(options={"begin": "now+1hour"}))
    named = checkout.root / "slurm" / "profiles" / "mycluster.yaml"  # no commit has it
    shutil.copy(given, named)
    for profile, path in (("mycluster", named), (given.name, given)):
        monkeypatch.chdir(given.parent)
        assert checkout.submit(palette, profile=profile).startswith("1 job submitted")
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert cancel_targets([]).startswith("1 job cancelled")
        assert resume([]).startswith("1 job submitted again")
        path.unlink()
        assert cancel_targets([]).startswith("1 job cancelled")
        assert resume([]).startswith("1 job submitted again")
        assert cancel_targets([]).startswith("1 job cancelled")


def test_a_submission_cut_off_before_it_knew_its_number_is_found_again(cluster: Cluster, checkout: Checkout) -> None:
    checkout.submit(PROBE)
    for array in checkout.ledger.arrays():
        checkout.ledger.write(array.model_copy(update={"job": None}))
    assert checkout.submit(PROBE).startswith("nothing to submit")
    assert all(array.job for array in checkout.ledger.arrays())
    cancel_targets([])


BOXED = """
import os
parent = stage.parent("palette")
stage.write_record(values={name: {"value": float(os.environ.get(name, 0)), "unit": "none"} for name in ("SET_UP", "BOXED")})
"""


def test_setup_lines_come_first_and_python_may_be_a_container_but_not_one_with_other_code(
    cluster: Cluster, checkout: Checkout
) -> None:
    box = checkout.root.with_name("box")  # as a container's runtime: its own surroundings, then the command in its place
    box.write_text('#!/bin/sh\nBOXED=$((SET_UP + 1)) exec "$@"\n')
    box.chmod(0o755)
    checkout.write("pretrain", BOXED)
    stage = "pretrain,model=tiny-s,seed=0"
    checkout.submit("palette,seed=5", profile=checkout.profile(python=f"{sys.executable} -E"))
    checkout.submit(stage, profile=checkout.profile(python=f"{box} {sys.executable}", setup=["export SET_UP=1"]))
    row = checkout.wait_for(stage, "done", "failed", "lost", "cancelled")
    assert row.state == "done", (row, checkout.logs())
    assert found(checkout, stage) == {"SET_UP": 1, "BOXED": 2}
    row = checkout.wait_for("palette,seed=5", "done", "failed", "lost", "cancelled")
    snapshot = checkout.ledger.arrays()[0].snapshot
    assert row.state == "failed"
    assert row.why.startswith(
        f"{row.stage} was submitted with the code in {snapshot}, but this job would run the code in {checkout.root}: let the"
    )


TWO_NODES = """
import time
import torch
from igpt.data.tokens import TokenizeSettings, make_store
from igpt.palette import Palette
from igpt.shape import ModelShape
from igpt.train.launch import train_store
from igpt.train.runtime import Launch, Runtime
from igpt.train.recipe import Recipe
parent = stage.parent("palette")
palette = Palette.fit(torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).numpy(), k=16, seed=0)
store = make_store(TokenizeSettings("digits", "train", 8), palette)[0].folder
plan = Recipe("test", ModelShape(2, 16, 2, 16, 64), "digits", 16, batch=8, steps=150, warmup=2, learning_rate=0.01, milestones=(1,))
launch = Launch.here()
one = train_store(plan, store, palette, seed=1, folder=stage.folder / "one", runtime=Runtime())
stage.report(1, plan.steps)
while not (list(stage.folder.glob("checkpoint-*")) or stage.stopping()):
    time.sleep(0.1)  # so that the first group is asked to stop as soon as it trains
runtime = Runtime(stop=stage.stopping)
two = train_store(plan, store, palette, seed=1, folder=stage.folder, runtime=runtime, launch=launch, report=stage.report)
found = {"nodes": launch.nodes, "one": one.train[-1], "two": two.train[-1]}
stage.write_record(values={name: {"value": float(value), "unit": "none"} for name, value in found.items()})
"""


def test_a_training_on_two_nodes_finds_the_losses_of_one(cluster: Cluster, checkout: Checkout) -> None:
    from slurm_checkout import squeue

    checkout.write("pretrain", TWO_NODES)
    stage = "pretrain,model=tiny-s,seed=0"
    resources = {"cpus": 1, "memory_gib": 3, "minutes": 30}
    stages = {"default": resources, "pretrain": {**resources, "nodes": 2}}
    # Threads that wait without spinning: the two "nodes" and all others share the machine's two cores.
    # And seconds to stop in that suffice them to come up.
    passive = {"OMP_WAIT_POLICY": "passive"}
    checkout.submit(stage, profile=checkout.profile(signal_seconds=900, stages=stages, environment=passive))
    break_code(checkout)  # which no node's processes, workers of its group and sessions after the first look into
    job = checkout.wait_for_step(stage, 1).job
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    assert checkout.wait(stage, lambda row: row.state in ("queued", "failed")).why == "preempted: queued again"
    row = checkout.wait_for(stage, "done", "failed", "lost", "cancelled")
    assert row.state == "done", (row, checkout.logs())
    ended = ["squeue", "-h", "-r", "-t", "RUNNING,COMPLETING", "-o", "%F"]
    wait_until(lambda: job not in subprocess.check_output(ended, text=True).split(), said=squeue, every=0.5)
    values = found(checkout, stage)
    assert values["nodes"] == 2
    assert values["two"] == pytest.approx(values["one"], abs=1e-4)  # the sums over two nodes are of another order
    (out,) = checkout.ledger.folder.glob("*/*_1_log.out")
    assert "Job completed successfully" in out.read_text()  # of the second node's task
    assert sessions(checkout, stage) == 2


def test_watching_and_following_end_with_the_jobs(cluster: Cluster, checkout: Checkout) -> None:
    command = [sys.executable, "-m", "igpt", "logs", "palette", "--follow"]
    checkout.submit("palette")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "Job completed successfully" in done.stdout


def test_a_drill_shows_that_a_killed_training_ends_as_one_left_alone(cluster: Cluster, checkout: Checkout) -> None:
    notebook = checkout.root / "notebooks" / "pretrain.ipynb"
    notebook.write_text(notebook.read_text().replace("else 8", "else 200"))
    checkout.commit()
    checkout.submit("pretrain,model=tiny-s", profile="local")  # it has been trained before
    said = run_drill(checkout.profile(), seed=3)
    assert said.endswith("the training resumed and ended equal to the bit; its record is in the book")
    (path,) = checkout.project.records.glob("drill/*.json")
    record = read_record(path)
    assert record is not None
    assert record.values["equal"].value == 1
    assert 20 <= record.values["killed"].value < 200
    assert drills_table(checkout.project).rows[0][3].text == "equal to the bit"


def test_the_doctor_says_what_the_queue_would(cluster: Cluster, checkout: Checkout) -> None:
    for by in ("gres", "gpus-per-node"):
        text, code = examine(checkout.profile(gpus_by=by, resources={"gpus": 4}), patience=0)
        assert code == 0, text
        assert "ok     a job of default: would start at" in text
    text, code = examine(checkout.profile(array_size=5000, partition="nowhere"), patience=0)
    assert code == 1
    assert "wrong  array size: array_size is 5000 and the cluster takes 1000: lower it in the profile" in text
    assert "wrong  a job of default: " in text
    assert "invalid partition" in text
    for resources in ({"minutes": 600}, {"gpus": 5}, {"memory_gib": 100}):
        assert examine(checkout.profile(resources=resources), patience=0)[1] == 1, resources
    with pytest.raises(UsageError, match="the scheduler refuses it .*: mend the profile, `igpt doctor` says more"):
        checkout.submit("palette", profile=checkout.profile(partition="nowhere"))
    assert checkout.ledger.arrays() == []


def test_a_job_longer_than_its_limit_is_continued_in_the_next(
    cluster: Cluster, limited: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_ROOT", str(limited.root))
    row = limited.wait_for(LONG, "done", "failed", "lost", "stopped")
    assert row.state == "done", row
    assert found(limited, LONG) == {"total": total_of()}
    assert sessions(limited, LONG) >= 2


def test_a_fine_tuning_longer_than_its_limit_is_continued_in_the_next_job(
    cluster: Cluster, limited: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_ROOT", str(limited.root))
    row = limited.wait_for(TUNED, "done", "failed", "lost", "stopped", "cancelled")
    assert row.state == "done", row
    values = found(limited, TUNED)
    assert (values["equal"], values["left"]) == (1, 0)  # as one left alone to the bit, and no checkpoint lies there any more
    assert values["before"] >= 1
    assert sessions(limited, TUNED) >= 2


def test_a_stage_that_only_ever_reaches_its_limit_is_given_up(
    cluster: Cluster, limited: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGPT_ROOT", str(limited.root))
    row = limited.wait_for(DEAF, "failed", "lost", "done")
    assert row.why == (
        f"{DEAF} has reached its limit of 1 minute 2 times without a new checkpoint: raise minutes in the profile and submit again"
    )
    assert sessions(limited, DEAF) == 2
