"""What a stage costs on a machine: the work of its notebook at the machine's rates.

Every notebook has its own entry in `igpt.experiments.protocols`, and every stage is given with all its parameters: nothing has
a price by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from igpt.experiments.protocols import PROTOCOLS, needed_stages
from igpt.experiments.work import Rates, Work
from igpt.stage import Stage
from igpt.train.cost import CARD_FLOPS, CORES_FLOPS
from igpt.train.recipes import recipe

# The card of `igpt.train.cost`: 40 % of its data sheet's 67 TFLOP/s in float64 and half of its 3.35 TB/s; an eigenproblem of
# 1,536 features in a fifth of a second is assumed. None of them has been measured here.
CARD_RATES = Rates(CARD_FLOPS, 0.40 * 67e12, 0.5 * 3.35e12, 2e11)
# Two cores: the best of nine looks at 4,000 x 512 features of 200 classes and at 20,000 x 128 of 100, and one eigenproblem of
# 1,536 features, measured beside other work (AMD EPYC).
CORES_RATES = Rates(CORES_FLOPS, 3.3e10, 4e9, 3.6e10)


def stage_work(stage: Stage) -> Work:
    """The work of one stage, all of whose parameters are named, without its parents.

    Raises KeyError for a notebook that has no entry here, and for one without the parameters that its price stands on.
    """
    work = PROTOCOLS[stage.notebook].work
    given = stage.parameters
    if isinstance(work, Work):
        return work
    return work(given, recipe(str(given["model"]), str(given.get("objective", "autoregressive"))))  # type: ignore[arg-type]


def stage_hours(stage: Stage) -> float | None:
    """Card-hours of one stage, all of whose parameters are named, without its parents; None for a notebook of one's own."""
    try:
        return stage_work(stage).hours(CARD_RATES)
    except KeyError:
        return None


InFull = Callable[[Stage], Stage]  # gives a stage all its parameters: `igpt.results.signature.Signer.in_full`


def with_parents(stages: Iterable[Stage], in_full: InFull) -> list[Stage]:
    """Stages and all that they stand on, once each, with all their parameters."""
    found: dict[Stage, None] = {}
    queue = list(stages)
    while queue:
        stage = in_full(queue.pop())
        if stage not in found:
            found[stage] = None
            queue += needed_stages(stage.notebook, stage.parameters).values()
    return list(found)


def run_hours(stages: Iterable[Stage], in_full: InFull, on: Rates = CARD_RATES) -> tuple[float, float]:
    """Hours of pre-training, and of everything after it, for a run's stages and their parents."""
    hours = {stage: stage_work(stage).hours(on) for stage in with_parents(stages, in_full)}
    pretraining = sum(h for stage, h in hours.items() if stage.notebook == "pretrain")
    return pretraining, sum(hours.values()) - pretraining
