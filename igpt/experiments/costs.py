"""What a stage of the paper's scale costs, from its model's and its data's sizes."""

from __future__ import annotations

from collections.abc import Iterable

from igpt.data import data_card
from igpt.experiments.cells import SEARCH_STEPS
from igpt.stage import Stage, needed_stages
from igpt.train.cost import forward_flops, gpu_hours, pretraining_flops, training_flops
from igpt.train.recipes import recipe

RATES_TRIED = 5  # about so many, from large to small
FINE_TUNINGS = 3 + 3  # three rates and three refits
FINE_TUNE_EPOCHS = 4  # of each, the notebook's default; the paper names none


def stage_gpu_hours(stage: Stage) -> float:
    """GPU-hours of one stage on the card of `igpt.train.cost`, without its parents."""
    given = stage.parameters
    if "model" not in given:
        return 0.0
    plan = recipe(str(given["model"]), str(given.get("objective", "autoregressive")))  # type: ignore[arg-type]
    if stage.notebook == "pretrain":
        return gpu_hours(pretraining_flops(plan))
    card = data_card(str(given.get("dataset", plan.dataset)))
    if stage.notebook == "released_loss":
        return gpu_hours(forward_flops(plan.shape) * card.test)
    if stage.notebook == "fine_tune":
        images = FINE_TUNINGS * int(given.get("epochs", FINE_TUNE_EPOCHS)) * (int(given.get("images", 0)) or card.train)
        return gpu_hours(training_flops(plan.shape, images))
    if stage.notebook == "rate_search":
        return gpu_hours(training_flops(plan.shape, RATES_TRIED * int(given.get("steps", SEARCH_STEPS)) * plan.batch))
    # The trained and the untrained network, or the weights of each milestone.
    passes = {"loss_against_probe": len(plan.milestones), "linear_probe": 2, "low_data": 2}.get(stage.notebook, 1)
    return gpu_hours(passes * forward_flops(plan.shape) * (card.train + card.test))


def with_parents(stages: Iterable[Stage]) -> list[Stage]:
    """Stages and all that they stand on, once each; every stage must name its parameters in full."""
    found: dict[Stage, None] = {}
    queue = list(stages)
    while queue:
        stage = queue.pop()
        if stage not in found:
            found[stage] = None
            queue += needed_stages(stage.notebook, stage.parameters).values()
    return list(found)


def run_gpu_hours(stages: Iterable[Stage]) -> tuple[float, float]:
    """GPU-hours of pre-training, and of everything after it, for a run's stages and their parents."""
    hours = {stage: stage_gpu_hours(stage) for stage in with_parents(stages)}
    pretraining = sum(h for stage, h in hours.items() if stage.notebook == "pretrain")
    return pretraining, sum(hours.values()) - pretraining
