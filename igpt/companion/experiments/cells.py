"""The published numbers of Image GPT as experiments with one measurement per tier, and the book's tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from igpt.companion.criteria import Criterion, Measurement, Metric
from igpt.companion.experiments.measures import ACCURACY_MARGIN, MEASURES, Measure, Value
from igpt.companion.experiments.protocols import EVALUATION, protocol
from igpt.companion.experiments.published import Published, curve_points, published_rows
from igpt.companion.experiments.speed import SPEED_STAGES
from igpt.companion.experiments.tiers import TIERS, Tier
from igpt.companion.stage import Literal, Stage


def check_measures(rows: Iterable[Published], tiers: Iterable[Tier]) -> None:
    """Raise ValueError for a row or tier with an unknown measure, which would otherwise stay pending."""
    named = {row.measure for row in rows if row.measure} | {name for tier in tiers for name in (*tier.lacks, *tier.instead)}
    if unknown := sorted(named - MEASURES.keys()):
        raise ValueError(f"there is no measure {unknown[0]!r}: name one of {', '.join(MEASURES)}")


check_measures(published_rows(), TIERS.values())

TOO_LARGE = ("imagenet", "imagenet-tokens")  # too large for L-BFGS (section 3.4): sgd_probe replaces the notebooks in BY_SGD
BY_SGD: dict[str, dict[str, Literal]] = {"linear_probe": {}, "concatenated_features": {"count": 5}}
UNMEASURED = {  # metrics that no run measures, in any tier
    "learning rate": "a learning rate is chosen, not measured",
    "compute": "a cost is spent, not measured",
}


@dataclass(frozen=True)
class Experiment:
    """A published number and its measurements, at most one per tier."""

    published: Published
    measurements: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        """The published row's id."""
        return self.published.row_id

    def measurement(self, tier: str) -> Measurement | None:
        """The measurement of a tier; None if it has none."""
        return next((each for each in self.measurements if each.tier == tier), None)


@cache
def experiments() -> tuple[Experiment, ...]:
    """All experiments, in the order of the published numbers; rows of other systems have no measurements."""
    rows = (*published_rows(), *_depth_rows())
    return tuple(Experiment(row, tuple(_measurements(row)) if row.ours and row.measure else ()) for row in rows)


def why_not(row: Published, tier: Tier) -> str:
    """Why an Image GPT row has no measurement in a tier; empty if it has one or no reason is declared."""
    return UNMEASURED.get(row.metric) or tier.unpublished.get(_published_model(row)) or tier.lacks.get(row.measure) or ""


def _published_model(row: Published) -> str:
    """Model and resolution of a row, as in `Tier.models`."""
    return f"{row.model} {row.resolution}"


def _measurements(row: Published) -> Iterator[Measurement]:
    """The row's measurement in each tier with a counterpart."""
    measure = MEASURES[row.measure]
    for tier in TIERS.values():
        counterpart = _published_model(row) in tier.models and row.dataset in tier.stands_for and row.measure not in tier.lacks
        if counterpart and (measure.scaled or tier.numbers):
            metric = _metric(row, tier.instead.get(row.measure, measure.value), tier)
            yield Measurement(tier.name, metric, _criterion(row, measure, tier))


def _criterion(row: Published, measure: Measure, tier: Tier) -> Criterion[Metric]:
    """The criterion for a row in a tier: the published number, or the claim behind it."""
    criterion = measure.criterion
    if tier.numbers and criterion.kind != "matches":
        margin = measure.margin or ACCURACY_MARGIN
        return Criterion("matches", f"the mean lies within {margin:g} of the published value", margin=margin)
    return Criterion(
        criterion.kind, criterion.claim, _metric(row, criterion.against, tier) if criterion.against else None, criterion.margin
    )


def _metric(row: Published, value: Value, tier: Tier) -> Metric:
    """The metric of a value in a tier, over all its seeds."""
    stages = tuple(dict.fromkeys(_stage(row, value, tier, seed) for seed in tier.seeds))
    key = value.key.format(model=tier.models[_published_model(row)])
    return Metric(stages, key, _metric(row, value.minus, tier) if value.minus else None)


def _stage(row: Published, value: Value, tier: Tier, seed: int) -> Stage:
    """The stage that measures a value in a tier with one seed."""
    notebook = value.notebook
    given: dict[str, Literal] = {
        "model": tier.models[_published_model(row)],
        "objective": "bert" if value.bert else "autoregressive",
        "dataset": tier.stands_for[MEASURES[row.measure].dataset or row.dataset],
        "seed": seed,
    }
    if tier.weights != "trained":
        given["weights"] = tier.weights
    if given["dataset"] in TOO_LARGE and notebook in BY_SGD:
        given |= {"iterations": 1_000_000, **BY_SGD[notebook]}
        notebook = "sgd_probe"
    given |= dict(value.given)
    omitted = {*EVALUATION} - {*protocol(notebook).takes}
    return tier.stage(notebook, **{name: value for name, value in given.items() if name not in omitted})


def _depth_rows() -> list[Published]:
    """Figure 2 as three published numbers: the depth of each curve's maximum, as a fraction of the blocks."""
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


@dataclass(frozen=True)
class Table:
    """One table of the book: its name on the command line, its caption, and its rows in published.csv.

    blocks : values of the column ``table``, or ``table/evaluation`` for the rows of one evaluation
    """

    name: str
    caption: str
    blocks: tuple[str, ...]

    def experiments(self) -> tuple[Experiment, ...]:
        """The table's experiments in the order of the published numbers."""
        rows = ((e, e.published) for e in experiments())
        return tuple(e for e, row in rows if {row.table, f"{row.table}/{row.evaluation}"} & {*self.blocks})


TABLES = (
    Table("headline", "The post's headline table", ("headline",)),
    Table(
        "linear-probes",
        "Linear probes on CIFAR-10, CIFAR-100 and STL-10, from the post and the paper's text",
        ("transfer/linear-probe", "probe-paper"),
    ),
    Table("depth", "How deep the best layer lies: the maxima of the paper's Figure 2", ("depth",)),
    Table(
        "fine-tunes",
        "Fine-tuning, from the post and the paper's section 4.5",
        ("fine-tune-paper", "fine-tune-imagenet", "transfer/fine-tune"),
    ),
    Table("imagenet-probes", "Linear probes on ImageNet, with features and parameters, from the post", ("imagenet-probe",)),
    Table("imagenet-probes-paper", "The same table as the paper prints it", ("imagenet-probe-paper",)),
    Table("imagenet-scale", "Linear probes on ImageNet by model size, from the paper's section 4.4", ("imagenet-probe-scale",)),
    Table("bert", "BERT against the autoregressive objective, from the paper's section 4.6", ("bert",)),
    Table("low-data", "Few labels on CIFAR-10, from the post and the paper's section 4.7", ("low-data", "low-data-paper")),
    Table("loss-against-probe", "Generative loss against probe accuracy: the points of the paper's Figure 3", ("figure-3",)),
    Table("released-losses", "Test losses of the released weights", ("released-loss",)),
    Table("parameters", "Numbers of parameters", ("parameters",)),
    Table("learning-rates", "Pre-training's learning rates, the paper's Table 5", ("learning-rate",)),
    Table("compute", "The cost of pre-training, as the post gives it", ("compute",)),
    Table("version-1", "Numbers of the paper's first version, which are not reproduced here", ("version-1",)),
)


def declared_stages(tier: str | None = None) -> list[Stage]:
    """The stages of all experiments and figures, of one tier or all, without their parents."""
    measured = [each for e in experiments() for each in e.measurements if tier in (None, each.tier)]
    figures = {**{name: each.figure_stages() for name, each in TIERS.items()}, "speed": SPEED_STAGES}
    stages = [stage for each in measured for stage in each.stages()]
    return list(dict.fromkeys([*stages, *(s for name, drawn in figures.items() if tier in (None, name) for s in drawn)]))
