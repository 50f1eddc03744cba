"""What a plan says that its cells and stages cost."""

from __future__ import annotations

import re

import pytest

from igpt.companion.experiments.costs import stage_cost
from igpt.companion.experiments.machines import CARDS, H100, RTX_4090, TWO_CORES
from igpt.companion.experiments.protocols import stage_demand
from igpt.companion.report.plans import cost_text
from igpt.companion.results.signature import Signer
from igpt.companion.run.local import plan_stages
from igpt.companion.run.targets import find_stages
from igpt.companion.stage import Stage
from igpt.project import Project


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables, by the first."""
    split = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {words[0]: words[1:] for words in split if len(words) > 3}


def test_every_cell_and_every_stage_has_a_line_and_the_whole_counts_downloads_once(project: Project) -> None:
    signer = Signer(project.notebooks)
    plan = plan_stages(project, find_stages(["headline-001", "figure-2-cifar100"], "paper", project))
    text = cost_text(plan, signer, [H100, *CARDS])
    found = rows(text)
    assert found["Stage, alone"][:3] == ["Get GB", "Disk GB", "Card GiB"]
    assert found["Stage, alone"][3:] == ["H100", *(card.title for card in CARDS)]
    training, probe = found["pretrain igpt-l"], found["linear_probe igpt-l cifar10"]
    assert training[4] == "830"
    assert (probe[0], found["linear_probe igpt-l cifar100"][0]) == ("0.2", "0.2")
    assert found["all that a machine holds"][0] == "0.3"  # 0.17 and 0.17 GB
    passing = stage_demand(signer.in_full(Stage.of("pretrain", model="igpt-l", objective="autoregressive", seed=0))).scratch / 1e9
    assert 1 < passing < float(probe[1])
    assert float(found["headline-001"][1]) == pytest.approx(float(training[1]) - passing + float(probe[1]), abs=0.11)
    assert found["headline-001"][3] == "840"
    assert text.endswith("3 stages, 0 finished; nothing was run")


def test_a_card_that_is_too_small_has_a_dash_and_every_card_says_where_its_rates_are_from(project: Project) -> None:
    signer = Signer(project.notebooks)
    stage = Stage.of("fine_tune", model="igpt-l", dataset="cifar10", seed=7)
    text = cost_text(plan_stages(project, [stage]), signer, [TWO_CORES, RTX_4090])
    assert rows(text)["fine_tune igpt-l cifar10 seed=7"][-1] == "-"
    assert rows(text)["all that a machine holds"][-1] == "0"  # the training is too large as well
    assert "Cell" not in text  # none is filled by this
    memory = stage_cost(signer.in_full(stage), TWO_CORES).memory
    assert rows(text)["fine_tune igpt-l cifar10 seed=7"][2] == f"{memory / 2**30:,.1f}"
    assert "\n2 cores: measured on two cores of an AMD EPYC; losses and samples in float32, at 0.2 TFLOP/s\n" in text
    assert "\nRTX 4090: 40% of the data sheet's 165 dense bfloat16 TFLOP/s, not measured; losses and samples in float32" in text
