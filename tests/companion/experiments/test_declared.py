"""The whole plan as it is declared, line by line, against the one that stands in ``plan.txt``.

Code is left out, which may change; whoever changes a cell, a criterion or a dependency on purpose writes the file anew with
``python tests/companion/experiments/test_declared.py``.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import pytest

from igpt.companion.criteria import Criterion, Metric
from igpt.companion.experiments.cells import check_measures, declared_stages, experiments
from igpt.companion.experiments.measures import MEASURES
from igpt.companion.experiments.protocols import PROTOCOLS
from igpt.companion.experiments.published import published_rows
from igpt.companion.experiments.tiers import TIERS
from igpt.companion.results.plan import make_plan
from igpt.companion.results.signature import Signer
from igpt.project import Project

DECLARED = Path(__file__).with_name("plan.txt")
SIGNER = Signer(Project.here().notebooks)


def metric_text(metric: Metric) -> str:
    """A metric with all its stages."""
    stages = "; ".join(SIGNER.canonical(stage).name for stage in metric.stages)
    return f"{metric.key} of [{stages}]{f' less {metric_text(metric.minus)}' if metric.minus else ''}"


def criterion_text(criterion: Criterion) -> str:
    """A criterion in one line."""
    return f"{criterion.kind} {criterion.margin:g} ({criterion.claim}){f' against {metric_text(criterion.against)}' if criterion.against else ''}"


def plan_lines() -> list[str]:
    """A line a cell and tier, and a line a stage with its parents and what else decides it."""
    lines = [
        f"{e.name} | {run.tier} | {metric_text(run.metric)} | {criterion_text(run.criterion)}"
        for e in experiments()
        for run in e.measurements
    ]
    for planned in make_plan(declared_stages(), SIGNER, lambda stage: None):
        parents = "; ".join(stage.name for stage in planned.parents)
        parts = [f"{name}={text[:12]}" for name, text in sorted(planned.signature.parts.items()) if name.startswith("data ")]
        recipes = [name for name in sorted(planned.signature.parts) if name.startswith("recipe ")]
        lines.append(f"{planned.stage.name} | on {parents or 'nothing'} | {'; '.join([*parts, *recipes])}")
    return sorted(lines)


def test_every_cell_rule_and_dependency_is_the_declared_one() -> None:
    changed = difflib.unified_diff(DECLARED.read_text().splitlines(), plan_lines(), "declared", "now", lineterm="", n=0)
    assert not (found := "\n".join(changed)), f"{found}\nif this is meant, write plan.txt anew, as this file says"


def test_a_published_row_or_a_tier_with_a_misspelt_measure_is_an_error() -> None:
    row = next(row for row in published_rows() if row.measure)
    with pytest.raises(ValueError, match="there is no measure 'prob': name one of probe,"):
        check_measures([replace(row, measure="prob")], [])
    with pytest.raises(ValueError, match="there is no measure 'few-4001'"):
        check_measures([], [replace(TIERS["tiny"], lacks={"few-4001": "too few"})])


def test_every_measure_is_named_by_a_row() -> None:
    assert {e.published.measure for e in experiments()} - {""} == {*MEASURES}


def test_every_notebook_has_a_protocol_and_every_protocol_a_notebook() -> None:
    assert {path.stem for path in Project.here().notebooks.glob("*.ipynb")} == {*PROTOCOLS}


if __name__ == "__main__":
    DECLARED.write_text("".join(f"{line}\n" for line in plan_lines()))
