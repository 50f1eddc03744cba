"""What the notebooks cost, one function a notebook, from its parameters, its recipe and its data's sizes.

Passes of the network, and the probes' solving; `igpt.companion.experiments.protocols` says which notebook has which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from igpt.companion.stage import Literal
from igpt.data import data_card
from igpt.data.dataset import DataSet
from igpt.evaluate.linear_probe import STRENGTHS, chosen_layers
from igpt.evaluate.logistic import ITERATIONS
from igpt.evaluate.low_data import DRAWS, PER_CLASS
from igpt.evaluate.sgd_probe import BATCH
from igpt.evaluate.sgd_probe import RATES as SGD_RATES
from igpt.train.cost import forward_flops, pretraining_flops, training_flops
from igpt.train.recipe import Recipe
from igpt.weights.released import STEPS

RATES_TRIED = 5  # about so many, from large to small
DRAWN = 16  # images that are sampled at once: `igpt.sample.AT_ONCE`, which brings torch
LOOKED_AT = 8  # images whose loss is taken when weights are converted
FINE_TUNINGS = 3 + 3  # three rates and three refits


@dataclass(frozen=True)
class Rates:
    """A machine in a second: operations in half precision, float32 and float64, bytes moved, operations of an eigenproblem."""

    half: float
    single: float
    double: float
    bytes: float
    eigen: float


@dataclass(frozen=True)
class Work:
    """Operations in half precision, float32 and float64, bytes that solving a probe moves, operations of its eigenproblems."""

    half: float = 0.0
    single: float = 0.0
    double: float = 0.0
    bytes: float = 0.0
    eigen: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def hours(self, on: Rates) -> float:
        """Hours on a machine: a probe's products and its memory overlap, so that the longer of the two counts."""
        solving = max(self.single / on.single + self.double / on.double, self.bytes / on.bytes)
        return (self.half / on.half + solving + self.eigen / on.eigen) / 3600


def expected_iterations(strength: float, classes: int) -> float:
    """Iterations of L-BFGS until it converges.

    70 at strength 1 and ten classes, growing with the fourth root of both. Counted were 22 to 193 for ten classes at strengths
    from 0.01 to 10 (26 to 62 on features of laptop-l), and 44 to 387 for two hundred: this is within a factor of three.
    """
    return min(70 * math.pow(strength * classes / 10, 0.25), ITERATIONS)


def probe_work(*, images: int, width: int, classes: int, problems: int = 1, strengths: tuple[float, ...] = STRENGTHS) -> Work:
    """Solving ``problems`` of this size, at all strengths side by side; one pass over the objective an iteration."""
    inner = min(images, width)  # fewer images than features: a probe of their span
    turns = [expected_iterations(strength, classes) for strength in strengths]
    unknowns, outputs = classes * (inner + 1), images * classes
    # A pass is two products. The features are read for both, for all strengths that go on at once; logits are passed eight
    # times; L-BFGS passes its 20 steps and 20 changes of the gradient four times.
    double = 4 * outputs * inner * sum(turns) + 4 * images * inner * width  # and covariance and rotation, before
    moved = 16 * images * inner * max(turns) + 8 * (8 * outputs + 4 * 40 * unknowns) * sum(turns)
    return Work(double=problems * double, bytes=problems * moved, eigen=problems * eigen_flops(inner))


def eigen_flops(size: int) -> float:
    """Operations of a symmetric eigenproblem with its vectors, about."""
    return 10.0 * size**3


Given = dict[str, Literal]  # all parameters of a stage


def _passes(plan: Recipe, images: float) -> Work:
    """The network run forwards in half precision."""
    return Work(forward_flops(plan.shape) * images)


def _whole_passes(plan: Recipe, images: float) -> Work:
    """The network run forwards in float32."""
    return Work(single=forward_flops(plan.shape) * images)


def _views(given: Given) -> int:
    """Passes over each test image."""
    return int(given["views"]) if given["objective"] == "bert" else 1


def _probed(given: Given, *, width: int, problems: int = 1, images: int = 0) -> Work:
    """Probes chosen on the held-out part and fitted again, of all training images or of ``images``."""
    card = data_card(str(given["dataset"]))
    whole = images or card.train
    search = probe_work(images=round(whole * (1 - card.held_out)), width=width, classes=card.classes, problems=problems)
    return search + probe_work(images=whole, width=width, classes=card.classes, problems=problems, strengths=(1.0,))


def linear_probe(given: Given, plan: Recipe) -> Work:
    """The trained and the untrained network, up to the last layer asked for; of pictures, pixels, colours and indices."""
    card, last = data_card(str(given["dataset"])), plan.shape.n_layer
    layers = chosen_layers(str(given["layers"]), last=last)
    found = _passes(plan, 2 * (card.train + _views(given) * card.test) * max(layers) / last)
    found += _probed(given, width=plan.shape.n_embd, problems=2 * len(layers))
    if not has_pictures(card):
        return found
    return found + _probed(given, width=plan.side**2 * card.channels, problems=2) + _probed(given, width=plan.palette_colours)


def has_pictures(card: DataSet) -> bool:
    """Whether a data set's pictures are probed beside features: there are some, and they fit into memory."""
    return card.read is not None and not card.cropped


def concatenated(given: Given, plan: Recipe) -> Work:
    """One pass, and one probe of several layers side by side."""
    card = data_card(str(given["dataset"]))
    width = min(int(given["layers"]), plan.shape.n_layer + 1) * plan.shape.n_embd
    return _passes(plan, card.train + card.test) + _probed(given, width=width)


def released_steps(given: Given) -> tuple[int, ...]:
    """The steps after which weights that exist are evaluated along pre-training: all that were published, or a user's own."""
    return STEPS if given["weights"] == "released" else STEPS[-1:]


def looks_along(given: Given, plan: Recipe) -> int:
    """How many weights are evaluated along pre-training: the recipe's milestones, or as `released_steps` says."""
    return len(plan.milestones) if given.get("weights", "trained") == "trained" else len(released_steps(given))


def weights(given: Given, plan: Recipe) -> Work:
    """The loss on the first images, where the released tokens are at hand; reading and writing take minutes."""
    return _whole_passes(plan, LOOKED_AT)


def milestones(given: Given, plan: Recipe) -> Work:
    """Every layer at each milestone."""
    card, images, looks = data_card(str(given["dataset"])), int(given["images"]), looks_along(given, plan)
    found = _passes(plan, looks * ((images or card.train) + card.test))
    return found + _probed(given, width=plan.shape.n_embd, problems=looks * (plan.shape.n_layer + 1), images=images)


def low_data(given: Given, plan: Recipe) -> Work:
    """Two networks' features; probes of every draw, of these and of pixels; the fine-tune on the fewest labels, in float32."""
    card = data_card(str(given["dataset"]))
    found = _passes(plan, 2 * (card.train + card.test)) + _whole_passes(plan, card.test)
    found += Work(single=training_flops(plan.shape, int(given["epochs"]) * PER_CLASS[0] * card.classes))
    for count in (n for n in PER_CLASS if n * card.classes <= card.train):
        for width, inputs in ((plan.shape.n_embd, 2), (plan.side**2 * card.channels, int(has_pictures(card)))):
            found += probe_work(images=count * card.classes, width=width, classes=card.classes, problems=inputs * DRAWS)
    return found


def settings(given: Given, plan: Recipe) -> Work:
    """One layer, standardised and raw; scikit-learn beside it is the processor's."""
    card = data_card(str(given["dataset"]))
    images = min(int(given["subset"]), card.train)
    found = _passes(plan, images + card.validation)
    return found + probe_work(images=images, width=plan.shape.n_embd, classes=card.classes, problems=2)


def sgd_probe(given: Given, plan: Recipe) -> Work:
    """The layer's choice on a part; all images' features; the rates side by side, and the refit, in float32."""
    card = data_card(str(given["dataset"]))
    subset, steps = min(int(given["subset"]), card.train - card.validation), int(given["iterations"])
    outputs, width = (len(SGD_RATES) + 1) * card.classes, int(given["count"]) * plan.shape.n_embd
    # Of bytes: the weights and momentum, six times.
    trained = Work(single=4 * BATCH * outputs * width * steps, bytes=4 * 6 * outputs * width * steps)
    chosen = _probed(given, width=plan.shape.n_embd, problems=plan.shape.n_layer + 1, images=subset)
    return _passes(plan, 1.25 * subset + card.train + _views(given) * card.test) + chosen + trained


def fine_tune(given: Given, plan: Recipe) -> Work:
    """Every rate and refit, at most the epochs that are allowed."""
    images = int(given["images"]) or data_card(str(given["dataset"])).train
    return Work(training_flops(plan.shape, FINE_TUNINGS * int(given["epochs"]) * images))


def pretrain(given: Given, plan: Recipe) -> Work:
    """The recipe's steps."""
    return Work(pretraining_flops(plan))


def rate_search(given: Given, plan: Recipe) -> Work:
    """A short run a rate."""
    return Work(training_flops(plan.shape, RATES_TRIED * int(given["steps"]) * plan.batch))


def released_loss(given: Given, plan: Recipe) -> Work:
    """One pass, in float32 as the loss was published."""
    return _whole_passes(plan, int(given["images"]))


def samples(given: Given, plan: Recipe) -> Work:
    """A whole sample an image, and half of one for each completion; the weights are read once a token of each batch."""
    images, completed = int(given["images"]), int(given["images"]) * int(given["completions"])
    batches = math.ceil(images / DRAWN) + math.ceil(completed / DRAWN) / 2
    read = Work(bytes=4 * plan.shape.parameters * plan.shape.n_ctx * batches)
    return _whole_passes(plan, images + completed / 2) + read
