"""The demand of each notebook on a machine, one function per notebook: operations, memory, and disk.

Each function takes a stage's parameters and its recipe. Small items are ignored: palettes, records, a probe's predictions.
`igpt.companion.experiments.protocols` assigns a function to each notebook; `igpt.companion.experiments.costs` converts
demand into cost on a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from igpt.companion.experiments.machines import GIB, Rates, eigen_flops
from igpt.companion.stage import Literal
from igpt.data import data_card
from igpt.data.dataset import DataSet
from igpt.errors import UsageError
from igpt.evaluate.kept import PRECISIONS
from igpt.evaluate.linear_probe import CS, chosen_layers
from igpt.evaluate.logistic import ITERATIONS, problem_bytes
from igpt.evaluate.low_data import DRAWS, PER_CLASS
from igpt.evaluate.sgd_probe import BATCH, BLOCK
from igpt.evaluate.sgd_probe import RATES as SGD_RATES
from igpt.shape import ModelShape
from igpt.train.memory import AT_ONCE, FLOAT, HALF
from igpt.train.recipe import Recipe, forward_flops, training_flops
from igpt.weights.released import STEPS

Given = dict[str, Literal]  # all parameters of a stage

RATES_TRIED = 5  # approximate number of learning rates in a search
LOOKED_AT = 8  # images whose loss is computed when weights are converted
FINE_TUNINGS = 3 + 3  # three rates and three refits
OWN_FINE_TUNINGS = 3 + 1  # of `igpt fine-tune`: three rates, and the refit
LOSS_BATCH = 64  # images of a pass in `released_loss`
PYTHON = 1.0 * GIB  # main memory of the process: libraries, GPU driver
# Arrays (positions, width) per image that a forward pass holds at its peak, including the widest activations as four arrays;
# peaks on a processor.
PASSING = {"bfloat16": 18, "float32": 8}
CHECKPOINT = 3  # copies of the weights' size: the weights and Adam's two moments
KEPT = 3 * CHECKPOINT  # training keeps three checkpoints: the latest two, and one from before the last good losses
IN_MEMORY = 10**6  # images; training reads the tokens of larger data sets from disk
INT64 = 8
# Repeated here, since importing its module imports torch, which plans and the book do not need:
DRAWN = 16  # images sampled at once: `igpt.sample.AT_ONCE`


@dataclass(frozen=True)
class Work:
    """FLOPs in half precision, float32 and float64; bytes moved to solve probes; FLOPs of their eigenproblems."""

    half: float = 0.0
    single: float = 0.0
    double: float = 0.0
    bytes: float = 0.0
    eigen: float = 0.0

    def __add__(self, other: Work) -> Work:
        """The work of both, one after the other."""
        return Work(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def hours(self, on: Rates) -> float:
        """Hours on a machine. A probe's products and its memory traffic overlap, so the longer of the two counts."""
        solving = max(self.single / on.single + self.double / on.double, self.bytes / on.bytes)
        return (self.half / on.half + solving + self.eigen / on.eigen) / 3600


@dataclass(frozen=True)
class Training:
    """Training with Adam, with the largest micro-batch that fits the card."""

    shape: ModelShape
    batch: int
    classes: int = 0  # outputs of a fine-tuning head; 0 without a head


@dataclass(frozen=True)
class Demand:
    """The demand of a stage: work, and sizes in bytes.

    network : frozen weights on a GPU; on a processor they are counted in ``memory``
    passing : activations of a pass through these weights
    other : function for the peak of other GPU memory, not at the same time; needs torch
    training : the training of the stage, if any
    memory : main memory
    kept : disk, in the stage's folder after the stage has ended
    scratch : peak of further disk, removed at the end of the stage
    """

    work: Work = Work()
    network: float = 0.0
    passing: float = 0.0
    other: Callable[[], float] = lambda: 0.0
    training: Training | None = None
    memory: float = PYTHON
    kept: float = 0.0
    scratch: float = 0.0


def expected_iterations(strength: float, classes: int) -> float:
    """Expected iterations of L-BFGS until convergence, at most `ITERATIONS`.

    70 at C = 1 and ten classes, proportional to the fourth root of both. Observed: 22 to 193 for ten classes and C from
    0.01 to 10 (26 to 62 on features of laptop-l), 44 to 387 for 200 classes. The estimate is within a factor of three.
    """
    return min(70 * math.pow(strength * classes / 10, 0.25), ITERATIONS)


def probe_work(*, images: int, width: int, classes: int, problems: int = 1, strengths: tuple[float, ...] = CS) -> Work:
    """The work of solving ``problems`` of this size for all values of C in parallel, with one evaluation per iteration."""
    inner = min(images, width)  # with fewer images than features, the probe is solved in their span
    iterations = [expected_iterations(strength, classes) for strength in strengths]
    unknowns, outputs = classes * (inner + 1), images * classes
    # An evaluation is two products. Each reads the features once for all values of C that have not converged. The logits are
    # read or written eight times, and L-BFGS's 20 steps and 20 gradient changes four times.
    double = 4 * outputs * inner * sum(iterations) + 4 * images * inner * width  # last term: covariance and rotation
    moved = 16 * images * inner * max(iterations) + 8 * (8 * outputs + 4 * 40 * unknowns) * sum(iterations)
    return Work(double=problems * double, bytes=problems * moved, eigen=problems * eigen_flops(inner))


def _probed(card: DataSet, *, width: int, problems: int = 1, images: int = 0) -> Work:
    """The work of choosing C on held-out images and refitting, with all training images or with ``images``."""
    train_images = images or card.train
    search = probe_work(images=round(train_images * (1 - card.held_out)), width=width, classes=card.classes, problems=problems)
    return search + probe_work(images=train_images, width=width, classes=card.classes, problems=problems, strengths=(1.0,))


def _probe_bytes(card: DataSet, width: int, images: int = 0) -> float:
    """Peak bytes on the card for the probe of one layer: the larger of search and refit, see `_probed`."""
    train_images = images or card.train
    search = problem_bytes(round(train_images * (1 - card.held_out)), width, card.classes, len(CS))
    return max(sum(search), sum(problem_bytes(train_images, width, card.classes, 1)))


def _passes(plan: Recipe, images: float) -> Work:
    """The work of forward passes in half precision."""
    return Work(forward_flops(plan.shape) * images)


def _whole_passes(plan: Recipe, images: float) -> Work:
    """The work of forward passes in float32."""
    return Work(single=forward_flops(plan.shape) * images)


def _network(plan: Recipe, networks: int = 1) -> tuple[float, float]:
    """Bytes of frozen weights in half precision, and of the activations of a pass through them."""
    image_bytes = HALF * plan.shape.n_ctx * plan.shape.n_embd
    return HALF * networks * plan.shape.parameters, PASSING["bfloat16"] * max(AT_ONCE / 4, image_bytes)


def _weights(plan: Recipe) -> float:
    """Bytes of a model's weights in float32, as saved."""
    return FLOAT * plan.shape.parameters


def _loaded(plan: Recipe, images: float = 0, networks: int = 1) -> float:
    """Bytes of main memory with the weights, one more copy (the file, or prepacked weights), and the images' tokens."""
    return PYTHON + (1 + networks) * _weights(plan) + INT64 * images * plan.shape.n_ctx


def _features(plan: Recipe, images: float, layers: int, precision: str = "float32") -> float:
    """Bytes of features. Raises UsageError for a precision in which features cannot be stored."""
    if precision not in PRECISIONS:
        raise UsageError(f"features are kept in {' or '.join(PRECISIONS)}, not {precision!r}: choose one of these")
    return np.dtype(precision).itemsize * images * layers * plan.shape.n_embd


def _card(given: Given) -> DataSet:
    """The data set of a stage."""
    return data_card(str(given["dataset"]))


def _looks(given: Given) -> int:
    """Number of forward passes on test images: several per image if BERT's masks vote."""
    return _card(given).test * (int(given["views"]) if given["objective"] == "bert" else 1)


def _pixels(plan: Recipe, card: DataSet) -> int:
    """Pixel values per image that are probed for comparison; 0 without pictures, or if they do not fit into memory."""
    return plan.side**2 * (card.channels or 3) if card.read is not None and card.in_memory else 0


def weights(given: Given, plan: Recipe) -> Demand:
    """The weights, a prepacked copy, and the loss of a few images. All on the processor; reading and writing take minutes."""
    kept = _weights(plan)
    return Demand(_whole_passes(plan, LOOKED_AT), memory=PYTHON + 2 * kept, kept=kept)


def pretrain(given: Given, plan: Recipe) -> Demand:
    """The recipe's steps. Checkpoints and the weights of milestones are kept; main memory holds a checkpoint to be written."""
    card = data_card(plan.dataset)
    memory = _loaded(plan, 0 if card.train > IN_MEMORY else card.train) + 2 * CHECKPOINT * _weights(plan)
    return Demand(
        Work(plan.flops),
        training=Training(plan.shape, plan.batch),
        memory=memory,
        kept=_weights(plan) * (len(plan.milestones) + KEPT),
        scratch=_weights(plan) * CHECKPOINT,
    )


def rate_search(given: Given, plan: Recipe) -> Demand:
    """A short training run per learning rate, each in a separate folder with final weights and checkpoints."""
    work = Work(training_flops(plan.shape, RATES_TRIED * int(given["steps"]) * plan.batch))
    return replace(pretrain(given, plan), work=work, kept=_weights(plan) * RATES_TRIED * (1 + KEPT))


def released_loss(given: Given, plan: Recipe) -> Demand:
    """Forward passes in float32, as for the published loss; tokens are read from disk."""
    passing = PASSING["float32"] * FLOAT * LOSS_BATCH * plan.shape.n_ctx * plan.shape.n_embd
    return Demand(_whole_passes(plan, int(given["images"])), _weights(plan), passing, memory=_loaded(plan))


def samples(given: Given, plan: Recipe) -> Demand:
    """A forward pass per sample, half a pass per completion; weights read once per token of a batch; the key-value cache."""
    shape, images, completed = plan.shape, int(given["images"]), int(given["images"]) * int(given["completions"])
    batches = math.ceil(images / DRAWN) + math.ceil(completed / DRAWN) / 2
    read = Work(bytes=4 * shape.parameters * shape.n_ctx * batches)
    cache = FLOAT * DRAWN * 2 * shape.n_layer * shape.n_ctx * shape.n_embd
    work = _whole_passes(plan, images + completed / 2) + read
    return Demand(work, other=lambda: _weights(plan) + cache, memory=_loaded(plan))


def linear_probe(given: Given, plan: Recipe) -> Demand:
    """The trained and the untrained network up to the last requested layer; for pictures also pixels, colours and indices."""
    card, last, pixels = _card(given), plan.shape.n_layer, _pixels(plan, _card(given))
    layers, images = chosen_layers(str(given["layers"]), last=last), card.train + card.test
    work = _passes(plan, 2 * (card.train + _looks(given)) * max(layers) / last)
    work += _probed(card, width=plan.shape.n_embd, problems=2 * len(layers))
    if pixels:
        work += _probed(card, width=pixels, problems=2)
        work += _probed(card, width=plan.palette_colours)
    return Demand(
        work,
        *_network(plan, networks=2),
        other=lambda: _probe_bytes(card, max(plan.shape.n_embd, pixels)),
        memory=_loaded(plan, images, networks=2) + 2 * FLOAT * images * pixels,
        scratch=_features(
            plan, card.train + _looks(given), len(layers), str(given["precision"])
        ),  # features of one network at a time
    )


def concatenated(given: Given, plan: Recipe) -> Demand:
    """One pass and one probe on concatenated layers. Features are on disk, and twice in memory for the refit."""
    card, layers = _card(given), min(int(given["layers"]), plan.shape.n_layer + 1)
    images, width = card.train + card.test, layers * plan.shape.n_embd
    return Demand(
        _passes(plan, images) + _probed(card, width=width),
        *_network(plan),
        other=lambda: _probe_bytes(card, width),
        memory=_loaded(plan, images) + 2 * _features(plan, images, layers),
        scratch=_features(plan, images, layers),
    )


def released_steps(given: Given) -> tuple[int, ...]:
    """The steps at which existing weights are evaluated: all published ones, or the last for a user's own weights."""
    return STEPS if given["weights"] == "released" else STEPS[-1:]


def milestones(given: Given, plan: Recipe) -> Demand:
    """Probes of every layer at each milestone of the recipe, or at each of the `released_steps`."""
    card = _card(given)
    evaluations = len(plan.milestones if given["weights"] == "trained" else released_steps(given))
    train, layers = int(given["images"]) or card.train, plan.shape.n_layer + 1
    images = train + card.test
    return Demand(
        _passes(plan, evaluations * images) + _probed(card, width=plan.shape.n_embd, problems=evaluations * layers, images=train),
        *_network(plan),
        other=lambda: _probe_bytes(card, plan.shape.n_embd, train),
        memory=_loaded(plan, images) + 2 * _features(plan, images, 1),
        scratch=_features(plan, images, layers, str(given["precision"])),  # features of one milestone at a time
    )


def own_pictures(given: Given, plan: Recipe) -> Demand:
    """Fine-tuning on the photos at every rate, and again; one pass of features, and one of classes."""
    classes = len(str(given["classes"]).split(","))
    photos, new = int(given["per_class"]) * classes, _card(given).test * classes // _card(given).classes
    trained = photos * int(given["epochs"]) * OWN_FINE_TUNINGS
    return Demand(
        Work(training_flops(plan.shape, trained)) + _whole_passes(plan, photos + 2 * new),
        training=Training(plan.shape, 16, classes),
        memory=_loaded(plan, photos) + 2 * CHECKPOINT * _weights(plan),
        scratch=_weights(plan) * (KEPT + CHECKPOINT),
    )


def low_data(given: Given, plan: Recipe) -> Demand:
    """Features of two networks; probes of these and of pixels per draw; fine-tuning on the fewest labels, in float32."""
    card, pixels = _card(given), _pixels(plan, _card(given))
    images = card.train + card.test
    work = _passes(plan, 2 * images) + _whole_passes(plan, card.test)
    work += Work(single=training_flops(plan.shape, int(given["epochs"]) * PER_CLASS[0] * card.classes))
    for count in (n for n in PER_CLASS if n * card.classes <= card.train):
        for width, inputs in ((plan.shape.n_embd, 2), (pixels, int(pixels > 0))):
            work += probe_work(images=count * card.classes, width=width, classes=card.classes, problems=inputs * DRAWS)
    return Demand(
        work,
        *_network(plan, networks=2),
        training=Training(plan.shape, 16, card.classes),
        memory=_loaded(plan, images, networks=2) + FLOAT * images * pixels + 2 * CHECKPOINT * _weights(plan),
        scratch=_features(plan, images, 2) + _weights(plan) * (KEPT + CHECKPOINT),
    )


def settings(given: Given, plan: Recipe) -> Demand:
    """One layer's features of some images, which are kept; probes of raw and standardised features. Ignores scikit-learn."""
    card = _card(given)
    images = min(int(given["subset"]), card.train)
    features = _features(plan, images + card.validation, 1)
    solved = probe_work(images=images, width=plan.shape.n_embd, classes=card.classes, problems=2)
    return Demand(
        _passes(plan, images + card.validation) + solved,
        *_network(plan),
        other=lambda: _probe_bytes(card, plan.shape.n_embd, images),
        memory=_loaded(plan, card.train) + 4 * features,
        kept=features,
    )


def sgd_probe(given: Given, plan: Recipe) -> Demand:
    """The choice of layers on a subset; features of these layers for all images; SGD for all rates, and the refit."""
    card, shape, count, steps = _card(given), plan.shape, int(given["count"]), int(given["iterations"])
    width, rates, layers = count * shape.n_embd, len(SGD_RATES), shape.n_layer + 1
    subset, all_passes = min(int(given["subset"]), card.train), card.train + _looks(given)
    part = min(int(given["subset"]), card.train - card.validation)
    outputs = (rates + 1) * card.classes
    # Bytes: weights and momentum are read or written six times.
    sgd = Work(single=4 * BATCH * outputs * width * steps, bytes=4 * 6 * outputs * width * steps)
    choice = _probed(card, width=shape.n_embd, problems=layers, images=part)
    solving = FLOAT * width * (5 * rates * card.classes + 2 * BLOCK)
    return Demand(
        _passes(plan, 1.25 * part + all_passes) + choice + sgd,
        *_network(plan),
        other=lambda: max(_probe_bytes(card, shape.n_embd, subset), solving),
        memory=_loaded(plan),
        scratch=max(_features(plan, 1.25 * subset, layers), _features(plan, all_passes, count, "float16")),
    )


def fine_tune(given: Given, plan: Recipe) -> Demand:
    """Every rate and refit with the largest number of epochs; one training run at a time, beside the pre-trained weights."""
    card = _card(given)
    tokens = 0 if card.train > IN_MEMORY else card.train + card.test
    return Demand(
        Work(training_flops(plan.shape, FINE_TUNINGS * int(given["epochs"]) * (int(given["images"]) or card.train))),
        training=Training(plan.shape, 128, card.classes),
        memory=_loaded(plan, tokens) + 2 * CHECKPOINT * _weights(plan),
        scratch=_weights(plan) * (KEPT + CHECKPOINT),
    )
