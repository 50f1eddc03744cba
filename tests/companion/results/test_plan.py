from __future__ import annotations

import random

import pytest
from test_record import record

from igpt.companion.report.plans import plan_text
from igpt.companion.results.plan import make_plan
from igpt.companion.results.record import Record
from igpt.companion.results.signature import Signer
from igpt.companion.stage import Stage
from igpt.project import Project

PROBES = [Stage.of("linear_probe", model="tiny-s", seed=seed) for seed in (0, 1)]


def records_for(stages: list[Stage], signer: Signer) -> dict[Stage, Record]:
    plan = make_plan(stages, signer, lambda stage: None)
    return {p.stage: record(p.stage.name, p.signature.digest).model_copy(update={"parts": p.signature.parts}) for p in plan}


@pytest.fixture
def signer(project: Project) -> Signer:
    return Signer(project.notebooks)


def test_a_plan_holds_the_parents_first(signer: Signer) -> None:
    plan = make_plan(PROBES, signer, lambda stage: None)
    names = [planned.stage.notebook for planned in plan]
    assert sorted(names) == ["linear_probe", "linear_probe", "palette", "pretrain", "pretrain"]
    for planned in plan:
        before = [p.stage for p in list(plan)[: [p.stage for p in plan].index(planned.stage)]]
        assert set(planned.parents) <= set(before)
    assert {planned.state for planned in plan} == {"missing"}


def test_any_order_of_declarations_gives_the_same_plan(signer: Signer) -> None:
    stages = [
        Stage.of(n, model=m, seed=s)
        for n in ("linear_probe", "fine_tune", "low_data")
        for m in ("tiny-s", "tiny-m")
        for s in (0, 1)
    ]
    expected = [planned.stage for planned in make_plan(stages, signer, lambda stage: None)]
    for seed in range(10):
        random.Random(seed).shuffle(stages)
        assert [planned.stage for planned in make_plan(stages, signer, lambda stage: None)] == expected


def test_a_record_of_the_same_signature_is_fresh_another_stale_and_says_why(signer: Signer) -> None:
    records = records_for(PROBES, signer)
    stale = signer.canonical(PROBES[0])
    old = {**records[stale].parts, "module igpt.model": "another digest"}
    records[stale] = records[stale].model_copy(update={"signature": "old", "parts": old})
    plan = make_plan(PROBES, signer, records.get)
    assert {planned.stage: planned.state for planned in plan if planned.state != "fresh"} == {stale: "stale"}
    assert plan[stale].why == "changed: module igpt.model"


def test_fresh_stages_are_not_run(signer: Signer) -> None:
    plan = make_plan(PROBES, signer, records_for(PROBES, signer).get)
    assert plan.to_run(lambda planned: False) == []


def test_a_stale_stage_runs_with_the_parents_whose_outputs_are_gone(signer: Signer) -> None:
    records = records_for(PROBES, signer)
    del records[signer.canonical(PROBES[0])]
    plan = make_plan(PROBES, signer, records.get)
    gone = [planned.stage.notebook for planned in plan.to_run(lambda planned: False)]
    assert gone == ["palette", "pretrain", "linear_probe"]
    kept = [planned.stage.notebook for planned in plan.to_run(lambda planned: planned.stage.notebook == "pretrain")]
    assert kept == ["linear_probe"]


def test_what_is_wanted_runs_although_its_record_is_fresh(signer: Signer) -> None:
    plan = make_plan(PROBES, signer, records_for(PROBES, signer).get)
    wanted = [signer.canonical(PROBES[1])]
    assert [p.stage.notebook for p in plan.to_run(lambda planned: False, wanted)] == ["palette", "pretrain", "linear_probe"]


def test_a_stage_that_is_finished_in_its_folder_is_not_run_again(signer: Signer) -> None:
    plan = make_plan(PROBES, signer, lambda stage: None)
    assert plan.to_run(lambda planned: True) == []


def test_the_parts_of_a_record_are_shown_as_text(signer: Signer) -> None:
    stage = signer.canonical(PROBES[0])
    old = record(stage.name, "0" * 64).model_copy(update={"parts": {"\x1b[2J\nfresh\u202e": "a"}})
    text = plan_text(make_plan([stage], signer, {stage: old}.get), signer, why=True)
    assert r"\x1b[2J\nfresh\u202e" in text
    assert all(c.isprintable() or c == "\n" for c in text)
