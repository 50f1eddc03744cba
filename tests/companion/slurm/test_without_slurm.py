"""Plans on this machine: what shares it, and what stops."""

from __future__ import annotations

import shutil

import pytest
from conftest import WriteNotebook, run_of
from hypothesis import given
from hypothesis import strategies as st

from igpt.companion.results.record import read_record
from igpt.companion.results.store import record_path
from igpt.companion.run.execute import StageStopped
from igpt.companion.run.folder import run_folder
from igpt.companion.run.local import plan_stages, run_plan
from igpt.companion.run.slots import Need, Slots
from igpt.companion.slurm.ledger import Job, JobStatus, Ledger
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.slurm.status import collect, log_lines, status_text
from igpt.companion.slurm.submit import run_here
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.files import write_text
from igpt.project import Project

PARAMETERS = "seed = 0"
ON_A_GPU = """
import os
from igpt.companion.run import open_stage
stage = open_stage("gpu", seed=seed)
stage.write_record(values={"gpu": {"value": float(os.environ["CUDA_VISIBLE_DEVICES"]), "unit": "none"}})
"""
STOPPING = """
from igpt.companion.run import open_stage
class Stopped(Exception):
    pass
stage = open_stage("stopping", seed=seed)
checkpoint = stage.folder / "checkpoint-0000003"
if not checkpoint.exists():
    checkpoint.write_text("3")
    raise Stopped("stopped after 3 of 9 steps; the same command continues")
stage.write_record(values={"begun_at": {"value": float(checkpoint.read_text()), "unit": "steps"}})
"""


CHAIN = """
from igpt.companion.run import open_stage
stage = open_stage({name!r}, {parameters})
{parent}
stage.write_record(values={{"answer": {{"value": 1.0, "unit": "none"}}}})
"""


def test_what_a_run_publishes_is_collected_the_parents_with_it(project: Project, write_notebook: WriteNotebook) -> None:
    chain = {
        "palette": ('dataset = "digits"\ncolours = 16\nseed = 0', "dataset=dataset, colours=colours, seed=seed", ""),
        "pretrain": (
            'model = "tiny-s"\nobjective = "autoregressive"\nseed = 0',
            "model=model, objective=objective, seed=seed",
            'stage.parent("palette")',
        ),
        "linear_probe": (
            'model = "tiny-s"\nobjective = "autoregressive"\ndataset = "digits"\nweights = "trained"\nseed = 0\n'
            'layers = "all"\nprecision = "float32"\nviews = 1',
            "model=model, objective=objective, dataset=dataset, weights=weights, seed=seed",
            'stage.parent("pretrain")',
        ),
    }
    for name, (defaults, parameters, parent) in chain.items():
        write_notebook(name, defaults, CHAIN.format(name=name, parameters=parameters, parent=parent))
    assert run_plan(project, plan_stages(project, [Stage.of("linear_probe")])) == 3
    published = {path: path.read_bytes() for path in project.records.glob("*/*.json")}
    assert sorted(path.stem.partition(",")[0] for path in published) == ["linear_probe", "palette", "pretrain"]
    shutil.rmtree(project.records / "tiny")
    assert collect().startswith("3 records collected, 0 there already")
    assert {path: path.read_bytes() for path in project.records.glob("*/*.json")} == published
    assert collect().startswith("0 records collected, 3 there already")
    damaged = next(iter(published))
    damaged.write_bytes(published[damaged][:50])
    assert collect().startswith("1 record collected, 2 there already")


def test_what_jobs_wrote_reaches_the_terminal_as_text(project: Project) -> None:
    from slurm_checkout import an_array

    nasty = "a\x1b[2J\x07\nb\u202e"
    array = an_array(f"palette,seed=0{nasty}")
    ledger = Ledger(project)
    ledger.write(array)
    write_text(Job(ledger, array, 0).status_path, JobStatus(state="failed", why=nasty).model_dump_json())
    write_text(ledger.folder / "0a" / "7_0_log.err", nasty)
    text = "\n".join([status_text([], every=True), *log_lines("7", follow=False)])
    assert r"a\x1b[2J\x07\nb\u202e" in text
    assert all(c.isprintable() or c == "\n" for c in text)


@given(st.integers(0, 8), st.integers(0, 4), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=8))
def test_no_core_and_no_gpu_is_given_twice(cores: int, gpus: int, wanted: list[tuple[int, int]]) -> None:
    whole = room = Slots(cores, tuple(map(str, range(gpus))))
    parts = []
    for each in wanted:
        taken = room.take(Need(*each))
        if taken is not None:
            part, room = taken
            parts.append(part)
            assert (part.cores, len(part.gpus)) == each
    held = [gpu for part in parts for gpu in part.gpus]
    assert sorted([*held, *room.gpus]) == sorted(whole.gpus)
    assert sum(part.cores for part in parts) + room.cores == whole.cores
    for part in parts:
        room = room.give_back(part)
    assert (room.cores, sorted(room.gpus)) == (whole.cores, sorted(whole.gpus))


def test_stages_at_once_have_a_gpu_each(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("gpu", PARAMETERS, ON_A_GPU)
    plan = plan_stages(project, [Stage.of("gpu", seed=seed) for seed in range(3)])
    assert run_plan(project, plan, slots=Slots(2, ("4", "5")), needs=lambda stage: Need(1, 1)) == 3
    records = [read_record(run_folder(project, p.stage, p.signature) / "record.json") for p in plan]
    assert {record.values["gpu"].value for record in records if record} == {4, 5}


def test_more_gpus_than_there_are_is_said_before_anything_starts(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("gpu", PARAMETERS, ON_A_GPU)
    profile = Profile(scheduler="local", stages={"default": Resources(gpus=64)})
    with pytest.raises(UsageError, match="gpu,seed=0 asks for 64 GPUs and this machine has"):
        run_here(project, plan_stages(project, [Stage.of("gpu")]), profile, dry_run=False)
    assert not project.runs.exists()


def test_gpus_that_only_a_finished_stage_asks_for_are_not_needed(project: Project, write_notebook: WriteNotebook) -> None:
    run_of(project, 0)
    [record] = project.runs.glob("palette,seed=0-*/record.json")
    published = record_path(project, Stage.of("palette", seed=0))
    published.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(record, published)
    profile = Profile(scheduler="local", stages={"default": Resources(gpus=64)})
    plan = plan_stages(project, [Stage.of("palette", seed=0)])
    assert [planned.state for planned in plan] == ["fresh"]
    assert run_here(project, plan, profile, dry_run=False) == "nothing to run: 1 stage is finished"


def test_a_stage_that_was_asked_to_stop_has_not_failed_and_continues(project: Project, write_notebook: WriteNotebook) -> None:
    write_notebook("stopping", PARAMETERS, STOPPING)
    (planned,) = plan = plan_stages(project, [Stage.of("stopping")])
    with pytest.raises(StageStopped, match=r"^stopping,seed=0 stopped after 3 of 9 steps; the same command continues$"):
        run_plan(project, plan)
    assert not list(project.runs.glob("*/failed.ipynb"))
    assert run_plan(project, plan) == 1
    record = read_record(run_folder(project, planned.stage, planned.signature) / "record.json")
    assert record is not None
    assert record.values["begun_at"].value == 3
