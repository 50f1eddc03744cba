"""Every published number of Image GPT as an experiment: what measures it in each tier, and what judges it.

One match decides from a published row what to measure; tiers differ in models, data set and seeds only.
The rules here were written before the records they judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from igpt.claim import Quantity, Rule, Run
from igpt.experiments.published import Published, curve_points, published_rows
from igpt.stage import Literal, Stage

SEEDS = {"tiny": (0, 1, 2), "laptop": (0,), "small": (0,), "paper": (0,)}
SIZE = {"iGPT-S": "s", "iGPT-M": "m", "iGPT-L": "l", "iGPT-XL": "l"}  # in every tier but the paper's
# What stands in for the paper's small data set, and for its large one.
DATASET = {
    "tiny": {"cifar10": "digits", "imagenet": "digits"},
    "laptop": {"cifar10": "cifar10", "imagenet": "cifar10"},
    "small": {"cifar10": "cifar10", "imagenet": "tiny-imagenet"},
}
# Where a notebook's defaults are more than a tier can pay for: two cores fine-tune for hours on all of CIFAR-10.
EFFORT: dict[tuple[str, str], dict[str, Literal]] = {
    ("laptop", "fine_tune"): {"images": 6_000, "epochs": 2},
    ("laptop", "loss_against_probe"): {"images": 10_000},
    ("small", "fine_tune"): {"images": 10_000, "epochs": 3},  # or the tier would take two hours of its GPU
    ("small", "rate_search"): {"steps": 200},
    # And where they are less than a reader wants to page through.
    **{(tier, "samples"): {"images": 32} for tier in ("laptop", "small")},
}
SEARCH_STEPS = 400  # of a run of rate_search, its default
LOW_DATA_DIGITS = ("40", "250")  # the digits hold too few images for 4,000 labels
BY_SGD: dict[str, dict[str, Literal]] = {"linear_probe": {}, "concatenated_features": {"count": 5}}
STEPS = ("65k", "131k", "262k", "524k", "1000k")  # figure 3's checkpoints, our milestones 0 to 4

# Half a point is our margin at the paper's scale: single runs were published, without intervals.
ACCURACY_MARGIN = 0.005
LOSS_MARGIN = 0.002  # nats per token
RELEASED_MARGIN = 0.0001  # nats or bits per token: the same weights on the same tokens, printed to four decimals
DEPTH_MARGIN = 0.05  # of the depth: the maximum of figure 2 is flat over seven layers of 48


@dataclass(frozen=True)
class Experiment:
    """One published number and the runs that are to measure it, one a tier."""

    published: Published
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The published row's id."""
        return self.published.row_id

    def run_in(self, tier: str) -> Run | None:
        """The run of a tier, if the number has one there."""
        return next((run for run in self.runs if run.tier == tier), None)


@cache
def experiments() -> tuple[Experiment, ...]:
    """All experiments, in the order of the published numbers; other systems' rows have no runs."""
    rows = (*published_rows(), *_depth_rows())
    return tuple(Experiment(row, tuple(_runs(row)) if row.ours else ()) for row in rows)


def _runs(row: Published) -> list[Run]:
    """The row's run in each tier that has a counterpart of it."""
    runs = []
    for tier in SEEDS:
        found = _measure(row, _Names(row, tier)) if _has_counterpart(row, tier) else None
        if found is not None:
            quantity, rule = found
            runs.append(Run(tier, quantity, rule if tier != "paper" or rule.kind == "matches" else _matches(row)))
    return runs


def _has_counterpart(row: Published, tier: str) -> bool:
    """Whether a tier can measure the row at all."""
    if tier == "paper":
        return True
    few = row.evaluation.removeprefix("low-data-").removesuffix("-fine-tune")
    return (
        row.model in SIZE
        and row.dataset in DATASET[tier]
        and row.resolution != "48x48"
        and row.evaluation not in ("test-loss", "pre-train")
        and (not row.evaluation.startswith("low-data") or tier != "tiny" or few in LOW_DATA_DIGITS)
        and not row.metric.startswith("epochs")
    )


class _Names:
    """Stages of one row in one tier."""

    def __init__(self, row: Published, tier: str) -> None:
        self.tier, self.seeds = tier, SEEDS[tier]
        if tier == "paper":
            self.model = row.model.lower() + ("-48" if row.resolution == "48x48" else "")
            self.dataset = row.dataset
        else:
            self.model = f"{tier}-{SIZE.get(row.model, '')}"
            self.dataset = DATASET[tier].get(row.dataset, "")

    def of(self, notebook: str, key: str, *, objective: str = "autoregressive", minus: Quantity | None = None) -> Quantity:
        """The quantity ``key`` of a notebook's records, one a seed."""
        given: dict[str, Literal] = {"model": self.model, "dataset": self.dataset, **EFFORT.get((self.tier, notebook), {})}
        if self.dataset == "imagenet" and notebook in BY_SGD:  # too large for L-BFGS, section 3.4
            given |= {"iterations": 1_000_000, **BY_SGD[notebook]}
            notebook = "sgd_probe"
        if notebook != "loss_against_probe":
            given["objective"] = objective
        return Quantity(tuple(Stage.of(notebook, **given, seed=seed) for seed in self.seeds), key, minus)


def _measure(row: Published, names: _Names) -> tuple[Quantity, Rule] | None:
    """What measures a row, and the claim it carries where its number itself cannot be compared."""
    bert = "bert" if "BERT" in row.method else "autoregressive"
    match row.evaluation, row.metric:
        case "linear-probe", "accuracy" if row.table == "figure-3":
            first = names.of("loss_against_probe", "accuracy_0")
            milestone = _milestone(row)
            if milestone == len(STEPS) - 1:
                claim = "features after the last step beat those after the first sixteenth of the steps"
                return names.of("loss_against_probe", f"accuracy_{milestone}"), Rule("above", claim, first)
            return names.of("loss_against_probe", f"accuracy_{milestone}"), _SHOWN
        case "test-loss", "loss":
            key = row.unit.partition(" ")[0]  # nats or bits
            quantity = Quantity((Stage.of("released_loss", model=row.model.lower()),), key)
            return quantity, Rule("matches", "the released weights have the loss published with them", margin=RELEASED_MARGIN)
        case "validation-loss", "loss":
            return names.of("loss_against_probe", f"loss_{_milestone(row)}"), _SHOWN
        case "linear-probe", "accuracy" if row.features == "15360":
            single = names.of("linear_probe", "accuracy")  # where the best layer's accuracy was measured
            return names.of("concatenated_features", "accuracy"), Rule("above", "five layers beat the best one", single)
        case "linear-probe", "accuracy":
            untrained = names.of("linear_probe", "untrained", objective=bert)
            claim = "trained features beat the same network's before training"
            return names.of("linear_probe", "accuracy", objective=bert), Rule("above", claim, untrained)
        case "linear-probe", "best layer":
            claim = "the curve's maximum is neither the first nor the last layer"
            return names.of("linear_probe", "best_depth"), Rule("inside", claim)
        case "linear-probe", "accuracy difference" if row.table == "probe-paper":
            best = names.of("linear_probe", "accuracy")
            return names.of("linear_probe", "final_layer", minus=best), Rule("below", "the final layer is worse than the best")
        case "linear-probe" | "fine-tune", "accuracy difference" if "5 masks" in row.method:
            notebook = row.evaluation.replace("-", "_")
            one = names.of(notebook, "accuracy", objective="bert")
            voted = names.of(notebook, "accuracy_voted", objective="bert", minus=one)
            if row.dataset == "cifar10":
                return voted, _SHOWN
            return voted, Rule("above", "five masks that vote beat one")
        case "linear-probe", "accuracy difference":
            autoregressive = names.of("linear_probe", "accuracy")
            difference = names.of("linear_probe", "accuracy", objective="bert", minus=autoregressive)
            return difference, Rule("below", "BERT's features are worse under a probe")
        case "fine-tune", "accuracy difference":
            tuned = names.of("fine_tune", "accuracy")
            probe = names.of("linear_probe", "accuracy", objective="bert", minus=names.of("linear_probe", "accuracy"))
            difference = names.of("fine_tune", "accuracy", objective="bert", minus=tuned)
            return difference, Rule("above", "fine-tuning closes part of BERT's gap under a probe", probe)
        case "fine-tune", "accuracy":
            scratch = names.of("fine_tune", "from_scratch", objective=bert)
            claim = "fine-tuning beats the same network trained with labels from its random start"
            return names.of("fine_tune", "accuracy", objective=bert), Rule("above", claim, scratch)
        case "end-to-end", "accuracy":
            tuned = names.of("fine_tune", "accuracy")
            return names.of("fine_tune", "from_scratch"), Rule("below", "training from scratch ends below fine-tuning", tuned)
        case "low-data-40-fine-tune", "accuracy":
            probe = names.of("low_data", "accuracy_40")
            return names.of("low_data", "fine_tune_40"), Rule("below", "fine-tuning on 40 labels ends below the probe", probe)
        case evaluation, "accuracy" if evaluation.startswith("low-data-"):
            labels = evaluation.removeprefix("low-data-")
            pixels = names.of("low_data", f"pixels_{labels}")
            claim = f"with {labels} labels, features beat raw pixels"
            return names.of("low_data", f"accuracy_{labels}"), Rule("above", claim, pixels)
        case evaluation, "standard deviation" if evaluation.startswith("low-data-"):
            return names.of("low_data", f"deviation_{evaluation.removeprefix('low-data-')}"), _SHOWN
        case _, "parameters":
            stage = Stage.of("parameters")
            return Quantity((stage,), row.model.lower()), Rule("matches", "the count is the published one", margin=0.5)
    return None


_SHOWN = Rule("shown", "nothing is claimed at this size")


def _matches(row: Published) -> Rule:
    """At the paper's scale the number itself is compared."""
    margin = {"loss": LOSS_MARGIN, "best layer": DEPTH_MARGIN}.get(row.metric, ACCURACY_MARGIN)
    return Rule("matches", f"the mean lies within {margin:g} of the published value", margin=margin)


def _milestone(row: Published) -> int:
    """Which of figure 3's checkpoints a row is: ``figure-3-s-65k-loss`` is 0."""
    return STEPS.index(row.row_id.split("-")[3])


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
                *("Figure 2, first layer at the maximum", "digitised"),
            )
        )
    return rows
