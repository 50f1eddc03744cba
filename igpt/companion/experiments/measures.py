"""The measures by name: the recorded value that corresponds to a published number, and the claim to test with it.

Each row of published.csv names its measure. The claim is tested in tiers whose models, data and steps are not the paper's,
where the number itself cannot be compared. All criteria were written before the records that they judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from igpt.companion.criteria import Criterion


@dataclass(frozen=True)
class Value:
    """A value in the record of a notebook, optionally minus another value: a metric without tier and seeds.

    key : may contain ``{model}``, which is replaced by the recipe's name
    given : parameters of the notebook in addition to those from the published row
    """

    notebook: str
    key: str
    bert: bool = False
    minus: Value | None = None
    given: tuple[tuple[str, str | int], ...] = ()

    def __sub__(self, other: Value) -> Value:
        """The difference of two values, seed by seed."""
        return replace(self, minus=other)


@dataclass(frozen=True)
class Measure:
    """A value to measure, and the criterion that judges it.

    scaled : whether tiers with other models, data and steps measure it too
    dataset : the published data set whose record holds the value, if it is not the row's
    margin : largest difference at which the number counts as reproduced, where numbers are compared
    """

    value: Value
    criterion: Criterion[Value]
    scaled: bool = True
    margin: float | None = None
    dataset: str = ""


def of(name: str, *, bert: bool = False, **given: str | int) -> Value:
    """A value from its name, ``notebook.key``."""
    notebook, _, key = name.partition(".")
    return Value(notebook, key, bert, given=tuple(given.items()))


def above(claim: str, against: Value | None = None) -> Criterion[Value]:
    """The criterion that a value is above another one, or above zero."""
    return Criterion("above", claim, against)


def below(claim: str, against: Value | None = None) -> Criterion[Value]:
    """The criterion that a value is below another one, or below zero."""
    return Criterion("below", claim, against)


def matches(claim: str, margin: float) -> Criterion[Value]:
    """The criterion that a value equals the published one within ``margin``, in every tier."""
    return Criterion("matches", claim, margin=margin)


# Margins where numbers are compared. Half a point of accuracy is our choice: the paper publishes single runs without intervals.
ACCURACY_MARGIN = 0.005
LOSS_MARGIN = 0.002  # nats per token
RELEASED_MARGIN = 0.0001  # nats or bits per token: the same weights on the same tokens, printed to four decimals
DEPTH_MARGIN = 0.05  # fraction of the depth: the maximum in figure 2 is flat over seven of 48 layers
MILESTONES = ("65k", "131k", "262k", "524k", "1000k")  # figure 3's checkpoints
SHOWN: Criterion[Value] = Criterion("shown", "nothing is claimed at this size")
INSIDE: Criterion[Value] = Criterion("inside", "the curve's maximum is neither the first nor the last layer")
TRAINED = "trained features beat the same network's before training"
TUNED = "fine-tuning beats the same network trained with labels from its random start"
LATER = "features after the last step beat those after the first sixteenth of the steps"
RELEASED = matches("the released weights have the loss published with them", RELEASED_MARGIN)

PROBE, BERT_PROBE = of("linear_probe.accuracy"), of("linear_probe.accuracy", bert=True)
TUNE, BERT_TUNE = of("fine_tune.accuracy"), of("fine_tune.accuracy", bert=True)
BERT_GAP = BERT_PROBE - PROBE
VOTES = of("linear_probe.accuracy_voted", bert=True) - BERT_PROBE
TUNED_VOTES = of("fine_tune.accuracy_voted", bert=True) - BERT_TUNE
LAST = len(MILESTONES) - 1
LABELS = (40, 250, 4000)


MEASURES: dict[str, Measure] = {
    "probe": Measure(PROBE, above(TRAINED, of("linear_probe.untrained"))),
    "probe-5": Measure(of("concatenated_features.accuracy"), above("five layers beat the best one", PROBE)),
    "best-depth": Measure(of("linear_probe.best_depth"), INSIDE, margin=DEPTH_MARGIN),
    "final-layer-gap": Measure(of("linear_probe.final_layer") - PROBE, below("the final layer is worse than the best")),
    "tune": Measure(TUNE, above(TUNED, of("fine_tune.from_scratch"))),
    "from-scratch": Measure(of("fine_tune.from_scratch"), below("training from scratch ends below fine-tuning", TUNE)),
    "bert-tune": Measure(BERT_TUNE, above(TUNED, of("fine_tune.from_scratch", bert=True))),
    "bert-probe-gap": Measure(BERT_GAP, below("BERT's features are worse under a probe")),
    "bert-tune-gap": Measure(BERT_TUNE - TUNE, above("fine-tuning closes part of BERT's gap under a probe", BERT_GAP)),
    "bert-probe-votes": Measure(VOTES, above("five masks that vote beat one")),
    "bert-probe-votes-shown": Measure(VOTES, SHOWN),  # on CIFAR-10, where votes hardly change the accuracy in the paper
    "bert-tune-votes": Measure(TUNED_VOTES, above("five masks that vote beat one")),
    **{
        f"few-{labels}": Measure(
            of(f"low_data.accuracy_{labels}"),
            above(f"with {labels} labels, features beat raw pixels", of(f"low_data.pixels_{labels}")),
        )
        for labels in LABELS
    },
    **{f"few-{labels}-deviation": Measure(of(f"low_data.deviation_{labels}"), SHOWN) for labels in LABELS},
    "few-40-tune": Measure(
        of("low_data.fine_tune_40"), below("fine-tuning on 40 labels ends below the probe", of("low_data.accuracy_40"))
    ),
    # The loss is on ImageNet; the record with loss and probe is for CIFAR-10, as in figure 3.
    **{
        f"loss@{i}": Measure(of(f"loss_against_probe.loss_{i}"), SHOWN, margin=LOSS_MARGIN, dataset="cifar10")
        for i in range(LAST + 1)
    },
    **{f"probe@{i}": Measure(of(f"loss_against_probe.accuracy_{i}"), SHOWN) for i in range(LAST)},
    f"probe@{LAST}": Measure(of(f"loss_against_probe.accuracy_{LAST}"), above(LATER, of("loss_against_probe.accuracy_0"))),
    "released-nats": Measure(of("released_loss.nats"), RELEASED, scaled=False),
    "released-bits": Measure(of("released_loss.bits"), RELEASED, scaled=False),
    "parameters": Measure(of("parameters.{model}"), matches("the count is the published one", 0.5), scaled=False),
}
