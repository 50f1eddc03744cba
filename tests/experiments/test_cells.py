from __future__ import annotations

from collections import Counter

import pytest
from conftest import ROOT

from igpt.evaluate.fine_tune import RATES
from igpt.experiments import declared_stages, experiments
from igpt.experiments.cells import SEARCH_STEPS, SEEDS
from igpt.experiments.costs import FINE_TUNE_EPOCHS, FINE_TUNINGS, run_gpu_hours, stage_gpu_hours, with_parents
from igpt.results.notebooks import check_stage, read_notebook
from igpt.results.signature import Signer
from igpt.stage import Stage, needed_stages, tier_of


def test_every_number_of_ours_but_settings_and_costs_has_an_experiment() -> None:
    without = [e.published for e in experiments() if e.published.ours and not e.runs]
    # A rate is chosen and a cost is spent, not measured.
    assert {row.table for row in without} == {"learning-rate", "compute", "fine-tune-paper"}
    assert [row.row_id for row in without if row.table == "fine-tune-paper"] == ["fine-tune-paper-098"]


def test_a_fine_tune_is_priced_at_the_epochs_that_its_notebook_runs() -> None:
    notebook = read_notebook(ROOT / "notebooks", "fine_tune")
    refits = 3  # tuned, without the generative loss, from scratch
    assert notebook.defaults["epochs"] == FINE_TUNE_EPOCHS
    assert len(RATES) + refits == FINE_TUNINGS


def test_a_search_is_as_long_as_the_book_says() -> None:
    assert read_notebook(ROOT / "notebooks", "rate_search").defaults["steps"] == SEARCH_STEPS


def test_other_systems_rows_have_no_runs() -> None:
    others = [e for e in experiments() if not e.published.method.startswith("iGPT")]
    assert len(others) > 40
    assert not any(e.runs for e in others)


@pytest.mark.parametrize("stage", declared_stages(), ids=lambda stage: stage.name)
def test_every_declared_stage_is_one_its_notebook_takes(stage: Stage) -> None:
    folder = ROOT / "notebooks"
    notebook = read_notebook(folder, stage.notebook)
    canonical = check_stage(notebook, stage)
    for parent in needed_stages(stage.notebook, {**notebook.defaults, **canonical.parameters}).values():
        check_stage(read_notebook(folder, parent.notebook), parent)


def test_the_tiny_tier_has_three_seeds_everywhere_and_its_own_models() -> None:
    assert len(SEEDS["tiny"]) >= 3
    for experiment in experiments():
        run = experiment.run_in("tiny")
        if run and run.quantity.stages[0].notebook != "parameters":
            assert len(run.quantity.stages) == len(SEEDS["tiny"]), experiment.name
            assert {tier_of(stage) for stage in run.stages()} == {"tiny"}


def test_at_the_papers_scale_the_number_itself_is_judged() -> None:
    runs = [run for e in experiments() if (run := e.run_in("paper"))]
    assert len(runs) > 80
    assert {run.rule.kind for run in runs} == {"matches"}
    assert all(run.rule.margin > 0 for run in runs)


def test_claims_of_the_tiny_tier_name_what_they_compare_with() -> None:
    kinds = Counter()
    for experiment in experiments():
        if run := experiment.run_in("tiny"):
            kinds[run.rule.kind] += 1
            if run.rule.kind in ("above", "below"):
                difference = run.quantity.minus is not None
                assert run.rule.against is not None or difference, experiment.name
                if run.rule.against is not None:
                    assert len(run.rule.against.stages) == len(run.quantity.stages)
    assert kinds["above"] > 10
    assert kinds["below"] > 2


def test_the_papers_stages_cost_what_their_parts_cost() -> None:
    run = next(e for e in experiments() if e.name == "headline-001").run_in("paper")
    assert run is not None
    stages = with_parents(run.stages())
    assert {stage.notebook for stage in stages} == {"linear_probe", "pretrain"}  # on the released palette
    pretraining, rest = run_gpu_hours(run.stages())
    assert pretraining == pytest.approx(1.2e21 / (0.40 * 989e12) / 3600, rel=0.03)
    assert 0 < rest < pretraining / 100
    assert stage_gpu_hours(Stage.of("palette", dataset="imagenet", colours=512)) == 0


def test_the_small_tier_is_priced_within_an_hour_of_its_card() -> None:
    signer = Signer(ROOT / "notebooks")
    stages = [signer.canonical(stage) for stage in declared_stages("small")]
    assert sum(run_gpu_hours(Stage.of(stage.notebook, **signer.parameters(stage)) for stage in stages)) < 1
