"""From plans to arrays, without a scheduler."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from igpt.companion.results.plan import PlannedStage, make_plan
from igpt.companion.results.signature import Signature, Signer
from igpt.companion.slurm.batches import SEPARATE, dependency, make_batches
from igpt.companion.slurm.profile import Profile, Resources
from igpt.companion.stage import Stage

ROOT = Path(__file__).resolve().parents[3]
PROFILE = Profile(array_size=7, stages={"default": Resources(), "pretrain": Resources(gpus=8)})


def planned(stage: Stage, *parents: Stage) -> PlannedStage:
    return PlannedStage(stage, Signature({"stage": stage.name}), parents, None)


@st.composite
def plans(draw: st.DrawFn) -> list[PlannedStage]:
    """Up to forty stages, each standing on some before it."""
    found: list[PlannedStage] = []
    for number in range(draw(st.integers(0, 40))):
        notebook = draw(st.sampled_from(["pretrain", "linear_probe"]))
        parents = draw(st.lists(st.sampled_from(found), max_size=3, unique_by=lambda p: p.stage)) if found else []
        found.append(planned(Stage.of(notebook, seed=number), *(parent.stage for parent in parents)))
    return found


@given(plans())
def test_every_stage_is_in_one_array_after_what_it_stands_on(todo: list[PlannedStage]) -> None:
    batches = make_batches(todo, PROFILE)
    place = {p.stage: number for number, batch in enumerate(batches) for p in batch.stages}
    assert sorted(place) == sorted(p.stage for p in todo)
    assert sum(len(batch.stages) for batch in batches) == len(todo)
    for batch in batches:
        assert 1 <= len(batch.stages) <= PROFILE.array_size
        assert {PROFILE.resources(p.stage) for p in batch.stages} == {batch.resources}
    for p in todo:
        for parent in p.parents:
            assert place[parent] < place[p.stage]
            assert parent in batches[place[p.stage]].parents


def test_a_stage_waits_for_its_own_parents_and_no_others() -> None:
    palette = Stage.of("palette")
    models = [Stage.of("pretrain", seed=seed) for seed in range(3)]
    probes = [(Stage.of("linear_probe", seed=seed, run=run), models[seed]) for seed in range(3) for run in range(2)]
    todo = [planned(palette), *(planned(m, palette) for m in models), *(planned(p, m) for p, m in probes)]
    batches = make_batches(todo, PROFILE)
    assert [len(batch.stages) for batch in batches] == [1, 3, 2, 2, 2]
    assert [set(batch.parents) for batch in batches[2:]] == [{model} for model in models]


def test_what_is_queued_already_is_waited_for_and_what_is_finished_is_not() -> None:
    parents = [Stage.of("pretrain", seed=seed) for seed in range(2)]
    (batch,) = make_batches([planned(Stage.of("linear_probe"), *parents)], PROFILE, waiting=[parents[1]])
    assert batch.parents == {parents[1]}


def test_dependencies_are_named_one_by_one_or_by_their_array() -> None:
    assert dependency([]) is None
    assert dependency(["12_1", "9", "12_0", "12_1"]) == "afterany:12_0:12_1:9"
    assert dependency([f"12_{n}" for n in range(9)] + ["9"]) == "afterany:12:9"


def test_planning_and_batching_take_time_in_proportion_to_the_stages() -> None:
    def planned_and_batched(seeds: int) -> None:
        stages = [Stage.of("linear_probe", model="tiny-s", seed=seed) for seed in range(seeds)]
        plan = make_plan(stages, Signer(ROOT / "notebooks"), lambda stage: None)
        batches = make_batches(plan.to_run(lambda each: False), Profile(array_size=500))
        assert len(plan) == sum(len(batch.stages) for batch in batches) == 2 * seeds + 1  # a palette, trainings, probes
        assert len(batches) <= 2 + SEPARATE

    planned_and_batched(1)  # what is read once for all
    assert calls_of(lambda: planned_and_batched(500)) < 2.5 * calls_of(lambda: planned_and_batched(250))


def calls_of(work: Callable[[], None]) -> int:
    """How many calls some work makes: what it costs, whatever else the machine does."""
    with cProfile.Profile() as profile:
        work()
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined,no-any-return]


def test_the_order_of_declaration_changes_no_array() -> None:
    stages = {Stage.of("linear_probe", seed=n): [Stage.of("pretrain", seed=n)] for n in range(6)}
    for order in (list(stages), list(stages)[::-1]):
        graph = {child: stages[child] for child in sorted(order)}
        todo = [planned(s, *stages.get(s, ())) for s in TopologicalSorter(graph).static_order()]
        sizes = [len(batch.stages) for batch in make_batches(todo, PROFILE)]
        assert sizes == [6, 1, 1, 1, 1, 1, 1]
