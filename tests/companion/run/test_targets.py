from __future__ import annotations

import pytest

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.run.targets import find_stages
from igpt.companion.stage import Stage
from igpt.errors import UsageError
from igpt.project import Project


def test_no_target_is_the_whole_tiny_tier(project: Project) -> None:
    assert find_stages([], None, project) == declared_stages("tiny")


def test_a_table_is_the_stages_of_its_cells(project: Project) -> None:
    stages = find_stages(["low-data"], None, project)
    assert {stage.notebook for stage in stages} == {"low_data"}
    assert {stage.parameters["seed"] for stage in stages} == {0, 1, 2}


def test_a_number_brings_what_its_verdict_needs(project: Project) -> None:
    stages = find_stages(["bert-112"], None, project)  # a difference of two objectives, against another
    assert {(s.notebook, s.parameters["objective"]) for s in stages} == {
        (notebook, objective) for notebook in ("fine_tune", "linear_probe") for objective in ("autoregressive", "bert")
    }


def test_a_stage_is_named_by_its_parameters(project: Project) -> None:
    assert find_stages(["linear_probe,model=tiny-m,seed=1"], None, project) == [Stage.of("linear_probe", model="tiny-m", seed=1)]


def test_a_number_with_one_tier_needs_no_tier(project: Project) -> None:
    [stage] = find_stages(["transfer-019"], None, project)
    assert (stage.parameters["model"], stage.parameters["weights"]) == ("igpt-l", "released")


@pytest.mark.parametrize(
    ("target", "tier", "message"),
    [
        ("linear-prob", None, "no experiment, table or notebook 'linear-prob'; did you mean linear-probes"),
        ("headline-01", None, r"no experiment, table or notebook 'headline-01'; did you mean headline-001\?$"),
        ("headline-002", None, "headline-002 has nothing to run: it is another system's"),
        ("transfer-019", "tiny", "transfer-019 has nothing to run in tier tiny: its runs are in tier paper and released"),
        ("headline-007", "released", "headline-007 has nothing to run in tier released: iGPT-XL's weights were not published"),
        ("compute-128", "released", "compute-128 has nothing to run in tier released: a cost is spent, not measured"),
        ("learning-rate-160", None, "learning-rate-160 has nothing to run: a learning rate is chosen, not measured"),
        ("linear_probe,model", None, "given as NAME=VALUE, not as 'model'"),
    ],
)
def test_a_target_that_is_none_is_refused(project: Project, target: str, tier: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_stages([target], tier, project)
