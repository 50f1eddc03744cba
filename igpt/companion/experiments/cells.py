"""Every published number of Image GPT as an experiment: what measures it in each tier, and what judges it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from igpt.companion.criteria import Criterion, Measurement, Metric
from igpt.companion.experiments.measures import ACCURACY_MARGIN, MEASURES, Measure, Value
from igpt.companion.experiments.protocols import EVALUATION, protocol
from igpt.companion.experiments.published import Published, curve_points, published_rows
from igpt.companion.experiments.tiers import BY_SGD, TIERS, TOO_LARGE, Tier
from igpt.companion.stage import Literal, Stage


def check_measures(rows: Iterable[Published], tiers: Iterable[Tier]) -> None:
    """Raise ValueError for a row or a tier that names a measure which there is not: it would be pending for ever."""
    named = {row.measure for row in rows if row.measure} | {name for tier in tiers for name in (*tier.lacks, *tier.instead)}
    if unknown := sorted(named - MEASURES.keys()):
        raise ValueError(f"there is no measure {unknown[0]!r}: name one of {', '.join(MEASURES)}")


check_measures(published_rows(), TIERS.values())

UNMEASURED = {  # metrics that no run measures, in any tier
    "learning rate": "a learning rate is chosen, not measured",
    "compute": "a cost is spent, not measured",
}


@dataclass(frozen=True)
class Experiment:
    """One published number and the runs that are to measure it, one a tier."""

    published: Published
    measurements: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        """The published row's id."""
        return self.published.row_id

    def measurement(self, tier: str) -> Measurement | None:
        """The run of a tier, if the number has one there."""
        return next((run for run in self.measurements if run.tier == tier), None)


@cache
def experiments() -> tuple[Experiment, ...]:
    """All experiments, in the order of the published numbers; other systems' rows have no runs."""
    rows = (*published_rows(), *_depth_rows())
    return tuple(Experiment(row, tuple(_runs(row)) if row.ours else ()) for row in rows)


def why_not(row: Published, tier: Tier) -> str:
    """Why a row of ours has no run in a tier, in a sentence; nothing where it has one, and where there is no more to say."""
    return UNMEASURED.get(row.metric) or tier.unpublished.get(_published_model(row)) or tier.lacks.get(row.measure) or ""


def _published_model(row: Published) -> str:
    """Model and resolution, as a tier names them."""
    return f"{row.model} {row.resolution}"


def _runs(row: Published) -> list[Measurement]:
    """The row's run in each tier that has a counterpart of it."""
    if not row.measure:
        return []
    measure = MEASURES[row.measure]
    return [_run(row, measure, tier) for tier in TIERS.values() if _has_counterpart(row, measure, tier)]


def _has_counterpart(row: Published, measure: Measure, tier: Tier) -> bool:
    """Whether a tier can measure the row at all."""
    here = _published_model(row) in tier.models and row.dataset in tier.stands_for and row.measure not in tier.lacks
    return here and (measure.scaled or tier.numbers)


def _run(row: Published, measure: Measure, tier: Tier) -> Measurement:
    """What measures a row in a tier, and the criterion that judges it."""

    def metric(value: Value | None) -> Metric | None:
        if value is None:
            return None
        stages = tuple(dict.fromkeys(_stage(row, value, tier, seed) for seed in tier.seeds))
        return Metric(stages, value.key.format(model=tier.models[_published_model(row)]), metric(value.minus))

    measured = metric(tier.instead.get(row.measure, measure.value))
    assert measured is not None
    claim = measure.claim
    criterion = Criterion(claim.kind, claim.words, metric(claim.against), claim.margin)
    if tier.numbers and claim.kind != "matches":
        margin = measure.margin or ACCURACY_MARGIN
        criterion = Criterion("matches", f"the mean lies within {margin:g} of the published value", margin=margin)
    return Measurement(tier.name, measured, criterion)


def _stage(row: Published, value: Value, tier: Tier, seed: int) -> Stage:
    """The stage of a value, one seed's."""
    notebook = value.notebook
    given: dict[str, Literal] = {
        "model": tier.models[_published_model(row)],
        "objective": "bert" if value.bert else "autoregressive",
        "dataset": tier.stands_for[MEASURES[row.measure].dataset or row.dataset],
        "seed": seed,
    }
    if tier.weights != "trained":
        given["weights"] = tier.weights
    if given["dataset"] in TOO_LARGE and notebook in BY_SGD:  # for L-BFGS, section 3.4
        given |= {"iterations": 1_000_000, **BY_SGD[notebook]}
        notebook = "sgd_probe"
    given |= dict(value.given)
    left_out = {*EVALUATION} - {*protocol(notebook).takes}
    return tier.stage(notebook, **{name: value for name, value in given.items() if name not in left_out})


def _depth_rows() -> list[Published]:
    """Figure 2 as three numbers: how deep each curve's maximum lies, as a fraction of the blocks."""
    rows = []
    for dataset in ("cifar10", "cifar100", "stl10"):
        points = [p for p in curve_points() if p.curve == "figure-2" and p.dataset == dataset and p.y is not None]
        best = max(points, key=lambda p: p.y or 0.0)
        depth = best.x / max(p.x for p in points)
        rows.append(
            Published(
                *("depth", f"figure-2-{dataset}", "iGPT", "iGPT-L", "32x32", "1536", "1362", dataset),
                *("linear-probe", "best layer", f"{depth:.2f}", "of the depth", "imagenet", "no", "paper"),
                *("Figure 2, first layer at the maximum", "digitised", "best-depth"),
            )
        )
    return rows
