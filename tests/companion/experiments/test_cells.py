from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from conftest import ROOT

from igpt.companion.criteria import Metric
from igpt.companion.experiments.cells import declared_stages, experiments
from igpt.companion.experiments.costs import run_hours, with_parents
from igpt.companion.experiments.demand import FINE_TUNINGS
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import TIERS, tier_of
from igpt.companion.results.notebooks import check_stage, read_notebook
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore
from igpt.companion.results.verdict import judge
from igpt.companion.stage import Stage
from igpt.evaluate.fine_tune import RATES
from igpt.evaluate.low_data import DRAWS, FIXED_C, draw_values
from igpt.project import Project

SIGNER = Signer(ROOT / "notebooks")


def compared_values() -> list[tuple[str, str]]:
    """Every notebook's value that some criterion holds against another one, in any tier."""
    found = set()

    def add(metric: Metric | None) -> None:
        if metric is not None:
            found.update((stage.notebook, metric.key) for stage in metric.stages)
            add(metric.minus)

    for experiment in experiments():
        for run in experiment.measurements:
            if run.criterion.kind in ("above", "below"):
                add(run.metric)
                add(run.criterion.against)
    return sorted(found)


def written_values(tree: ast.Module) -> Iterator[tuple[re.Pattern[str], str]]:
    """What a notebook's record has under a name, given in a dictionary or by ``values[name] = ...``: a pattern, the source."""
    names = {n.targets[0].id: n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "stage.write_record":
            given = next(iter([*node.args, *(word.value for word in node.keywords if word.arg == "values")]))
            written = names.get(given.id) if isinstance(given, ast.Name) else given
            pairs = list(zip(written.keys, written.values, strict=True)) if isinstance(written, ast.Dict) else []
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("values["):
            assert isinstance(node.targets[0], ast.Subscript)
            pairs = [(node.targets[0].slice, node.value)]
        for name, value in pairs:
            source = ast.unparse(names[value.id] if isinstance(value, ast.Name) else value)
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield re.compile(re.escape(name.value)), source
            elif isinstance(name, ast.JoinedStr):
                parts = (re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in name.values)
                yield re.compile("".join(map(str, parts))), source


def test_every_number_of_ours_but_settings_and_costs_has_an_experiment() -> None:
    without = [e.published for e in experiments() if e.published.ours and not e.measurements]
    # A rate is chosen and a cost is spent, not measured.
    assert {row.table for row in without} == {"learning-rate", "compute", "fine-tune-paper"}
    assert [row.row_id for row in without if row.table == "fine-tune-paper"] == ["fine-tune-paper-098"]


def test_a_fine_tune_is_priced_at_the_rates_and_refits_that_its_notebook_runs() -> None:
    refits = 3  # tuned, without the generative loss, from scratch
    assert len(RATES) + refits == FINE_TUNINGS


def test_other_systems_rows_have_no_runs() -> None:
    others = [e for e in experiments() if not e.published.method.startswith("iGPT")]
    assert len(others) > 40
    assert not any(e.measurements for e in others)


@pytest.mark.parametrize("stage", declared_stages(), ids=lambda stage: stage.name)
def test_every_declared_stage_is_one_its_notebook_takes(stage: Stage) -> None:
    folder = ROOT / "notebooks"
    notebook = read_notebook(folder, stage.notebook)
    canonical = check_stage(notebook, stage)
    for parent in protocol(stage.notebook).parents({**notebook.defaults, **canonical.parameters}).values():
        check_stage(read_notebook(folder, parent.notebook), parent)


def test_the_tiny_tier_has_three_seeds_everywhere_and_its_own_models() -> None:
    assert len(TIERS["tiny"].seeds) >= 3
    for experiment in experiments():
        run = experiment.measurement("tiny")
        if run and run.metric.stages[0].notebook != "parameters":
            assert len(run.metric.stages) == len(TIERS["tiny"].seeds), experiment.name
            assert {tier_of(stage) for stage in run.stages()} == {"tiny"}


def test_at_the_papers_scale_the_number_itself_is_judged() -> None:
    runs = [run for e in experiments() if (run := e.measurement("paper"))]
    assert len(runs) > 80
    assert {run.criterion.kind for run in runs} == {"matches"}
    assert all(run.criterion.margin > 0 for run in runs)


def test_claims_of_the_tiny_tier_name_what_they_compare_with() -> None:
    kinds = Counter()
    for experiment in experiments():
        if run := experiment.measurement("tiny"):
            kinds[run.criterion.kind] += 1
            if run.criterion.kind in ("above", "below"):
                difference = run.metric.minus is not None
                assert run.criterion.against is not None or difference, experiment.name
                if run.criterion.against is not None:
                    assert len(run.criterion.against.stages) == len(run.metric.stages)
    assert kinds["above"] > 10
    assert kinds["below"] > 2


@pytest.mark.parametrize(("notebook", "key"), compared_values())
def test_a_notebook_gives_every_value_that_a_rule_compares_an_interval(notebook: str, key: str) -> None:
    tree = read_notebook(ROOT / "notebooks", notebook).tree
    written = [source for name, source in written_values(tree) if name.fullmatch(key)]
    if "**draw_values(rows)" in ast.unparse(tree) and not written:
        rows: list[dict[str, float | int | str]] = [
            {"input": kind, "labels": labels, "strength": FIXED_C, "draw": draw, "accuracy": 0.5 + draw / 100}
            for kind in ("features", "pixels")
            for labels in (40, 250, 4000)
            for draw in range(DRAWS)
        ]
        found = draw_values(rows)[key]
        assert found["low"] < found["value"] < found["high"]
    else:
        assert len(written) == 1
        assert written[0].startswith("accuracy("), f"is {written[0]} known to have an interval?"


def test_the_published_records_have_every_interval_that_their_rules_need() -> None:
    store = RecordStore(Project(ROOT))
    runs = [(e, run) for e in experiments() for run in e.measurements if run.criterion.kind in ("above", "below")]
    verdicts = [judge(run.metric, run.criterion, store.read, published=e.published.number) for e, run in runs]
    assert [verdict.sentence for verdict in verdicts if "no interval" in verdict.sentence] == []
    assert any(verdict.word == "reproduced" for verdict in verdicts)


def test_the_papers_stages_cost_what_their_parts_cost() -> None:
    run = next(e for e in experiments() if e.name == "headline-001").measurement("paper")
    assert run is not None
    stages = with_parents(run.stages(), SIGNER.in_full)
    assert {stage.notebook for stage in stages} == {"linear_probe", "pretrain"}  # on the released palette
    pretraining, rest = run_hours(stages)
    assert pretraining == pytest.approx(1.2e21 / (0.40 * 989e12) / 3600, rel=0.03)
    assert 0 < rest < pretraining / 100


def test_the_small_tier_is_priced_at_about_an_hour_of_its_card() -> None:
    assert sum(run_hours(with_parents(declared_stages("small"), SIGNER.in_full))) == pytest.approx(1, abs=0.1)
