"""The measures by name: which value of which notebook's record measures a published number, and the claim that it tests.

A row of published.csv names its measure. The claim is tested where the number itself cannot be compared: in the tiers whose
models, data and steps are not the paper's. Written before the records that they judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from igpt.companion.criteria import Criterion


@dataclass(frozen=True)
class Value:
    """A value of a notebook's record, minus another one if there is one: a metric, whatever the tier and the seeds.

    key : ``{model}`` in it stands for the recipe's name
    given : parameters of the notebook beside those that follow from the published row
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
    """What is measured, and what is claimed of it.

    scaled : whether tiers of other models, data and steps have it too
    dataset : the published data set whose record has it, where that is not the row's
    margin : within which the number counts as reproduced, where it is compared
    """

    value: Value
    criterion: Criterion[Value]
    scaled: bool = True
    margin: float | None = None
    dataset: str = ""


def of(name: str, *, bert: bool = False, **given: str | int) -> Value:
    """A value as ``notebook.key``."""
    notebook, _, key = name.partition(".")
    return Value(notebook, key, bert, given=tuple(given.items()))


def above(claim: str, against: Value | None = None) -> Criterion[Value]:
    """The value is above another one, or above zero."""
    return Criterion("above", claim, against)


def below(claim: str, against: Value | None = None) -> Criterion[Value]:
    """The value is below another one, or below zero."""
    return Criterion("below", claim, against)


def matches(claim: str, margin: float) -> Criterion[Value]:
    """The value is the published one, in every tier."""
    return Criterion("matches", claim, margin=margin)


# Half a point is our margin where numbers are compared: single runs were published, without intervals.
ACCURACY_MARGIN = 0.005
LOSS_MARGIN = 0.002  # nats per token
RELEASED_MARGIN = 0.0001  # nats or bits per token: the same weights on the same tokens, printed to four decimals
DEPTH_MARGIN = 0.05  # of the depth: the maximum of figure 2 is flat over seven layers of 48
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
    "bert-probe-votes-shown": Measure(VOTES, SHOWN),  # on CIFAR-10, where the paper says that they hardly change a thing
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
    # A loss is ImageNet's; the record that has it beside the probe is CIFAR-10's, as in figure 3.
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
