"""What the post and the paper claim, as data: declared before it is run."""

from __future__ import annotations

from igpt.experiments.cells import DATASET, EFFORT, Experiment, experiments
from igpt.experiments.speed import SPEED_STAGES
from igpt.experiments.tables import TABLES, Table
from igpt.stage import Stage

__all__ = ["TABLES", "Experiment", "Table", "declared_stages", "experiments", "rate_searches", "samples_of"]


def samples_of(tier: str) -> Stage:
    """A tier's samples and completions, by its largest model."""
    return Stage.of("samples", model=f"{tier}-l", **EFFORT.get((tier, "samples"), {}))


def _settings(tier: str) -> Stage:
    """What the paper leaves open in the probe, varied on a tier's largest model."""
    return Stage.of("probe_settings", model=f"{tier}-l", dataset=DATASET[tier]["cifar10"])


def rate_searches(tier: str) -> tuple[Stage, ...]:
    """The searches behind a tier's learning rates: of each size, and of the largest one's BERT."""
    effort = EFFORT.get((tier, "rate_search"), {})
    sizes = tuple(Stage.of("rate_search", model=f"{tier}-{size}", seed=100, **effort) for size in "sml")
    return (*sizes, Stage.of("rate_search", model=f"{tier}-l", seed=100, objective="bert", **effort))


# Stages that fill figures or the tables of speed, and no cell of a published table.
FIGURE_STAGES: dict[str, tuple[Stage, ...]] = {
    "tiny": (samples_of("tiny"), _settings("tiny")),
    **{tier: (samples_of(tier), _settings(tier), *rate_searches(tier)) for tier in ("laptop", "small")},
    "speed": SPEED_STAGES,
}


def declared_stages(tier: str | None = None) -> list[Stage]:
    """The stages of every experiment and figure, of one tier or of all; parents are not listed."""
    found = {stage: None for e in experiments() for run in e.runs if tier in (None, run.tier) for stage in run.stages()}
    for name, stages in FIGURE_STAGES.items():
        if tier in (None, name):
            found |= dict.fromkeys(stages)
    return list(found)
