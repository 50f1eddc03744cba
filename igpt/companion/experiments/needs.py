"""What the notebooks need beside time, one function a notebook: memory of the card and of the machine, and room on the disk.

As `experiments.work`, from a stage's parameters, its recipe and its data's sizes. What is small is left out: a palette,
records, a probe's predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from igpt.companion.experiments.machines import GIB
from igpt.companion.experiments.work import DRAWN, RATES_TRIED, Given, has_pictures
from igpt.data import data_card
from igpt.errors import UsageError
from igpt.evaluate.linear_probe import STRENGTHS, chosen_layers
from igpt.evaluate.logistic import problem_bytes
from igpt.evaluate.sgd_probe import BLOCK
from igpt.evaluate.sgd_probe import RATES as SGD_RATES
from igpt.shape import ModelShape
from igpt.train.memory import FLOAT, HALF
from igpt.train.recipe import Recipe

PYTHON = 1.0 * GIB  # of the machine: the libraries, a GPU's driver
WIDEST = 2**28  # bytes of the widest activations of a pass over frozen weights: `igpt.evaluate.feature_store.AT_ONCE`
# Arrays (positions, width) of an image that a pass has at once, four of them the widest activations: the peaks on a processor.
PASSING = {"bfloat16": 18, "float32": 8}
PRECISIONS = ("float32", "float16")  # of features on disk: `igpt.evaluate.feature_store.PRECISIONS`, which brings torch
LOSS_BATCH = 64  # images of a pass in `released_loss`
CHECKPOINT = 3  # copies of the weights: they and Adam's two moments
KEPT = 3 * CHECKPOINT  # of a training: the newest two, and one from before the last good losses; one more is being written
INT64 = 8


@dataclass(frozen=True)
class Training:
    """Adam's steps, which take what a card has: as many images at once as it holds."""

    shape: ModelShape
    batch: int
    classes: int = 0  # of a fine-tune's head


@dataclass(frozen=True)
class Needs:
    """Bytes.

    network : frozen weights on the card; a processor has them in the machine's memory, where they are counted
    passing : of a pass through them
    other : tells of whatever else the card holds, at another time; only asked where torch is at hand
    training : or what a training takes of it
    memory : of the machine
    kept : on the disk, in the stage's folder once it has ended
    scratch : there beside it at the height, and removed with the end
    """

    network: float = 0.0
    passing: float = 0.0
    other: Callable[[], float] = lambda: 0.0
    training: Training | None = None
    memory: float = PYTHON
    kept: float = 0.0
    scratch: float = 0.0

    @property
    def disk(self) -> float:
        """On the disk, in the stage's folder at its height."""
        return self.kept + self.scratch


def _weights(plan: Recipe) -> float:
    """Bytes of a model's weights as they are kept."""
    return FLOAT * plan.shape.parameters


def _network(plan: Recipe, networks: int = 1) -> tuple[float, float]:
    """Frozen weights in half precision, and a pass through them."""
    one = HALF * plan.shape.n_ctx * plan.shape.n_embd
    return HALF * networks * plan.shape.parameters, PASSING["bfloat16"] * max(WIDEST / 4, one)


def _loaded(plan: Recipe, images: float = 0, networks: int = 1) -> float:
    """The machine's memory with weights, and one more copy of them: the file, or as products want them; and with all tokens."""
    return PYTHON + (1 + networks) * _weights(plan) + INT64 * images * plan.shape.n_ctx


def _features(plan: Recipe, images: float, layers: int, precision: str = "float32") -> float:
    """Bytes of features. Raises UsageError for a precision that they are not kept in."""
    if precision not in PRECISIONS:
        raise UsageError(f"features are kept in {' or '.join(PRECISIONS)}, not {precision!r}: choose one of these")
    return np.dtype(precision).itemsize * images * layers * plan.shape.n_embd


def _probe(given: Given, width: int, images: int = 0) -> float:
    """The card's memory for one layer's probe, of all training images or of ``images``: the search, or the refit."""
    card = data_card(str(given["dataset"]))
    whole = images or card.train
    search = problem_bytes(round(whole * (1 - card.held_out)), width, card.classes, len(STRENGTHS))
    return max(sum(search), sum(problem_bytes(whole, width, card.classes, 1)))


def _looks(given: Given) -> float:
    """Test images, each as often as masks are drawn for it."""
    views = int(given["views"]) if given.get("objective") == "bert" else 1
    return views * data_card(str(given["dataset"])).test


def nothing(given: Given, plan: Recipe) -> Needs:
    """No more than Python."""
    return Needs()


def weights(given: Given, plan: Recipe) -> Needs:
    """The model, and a copy as products want it; all on processors, as is the pass of the first images."""
    return Needs(memory=PYTHON + 2 * _weights(plan), kept=_weights(plan))


def pretrain(given: Given, plan: Recipe) -> Needs:
    """Checkpoints and the weights of each milestone, which stay; in the machine's memory a checkpoint as it is written."""
    card = data_card(plan.dataset)
    tokens = 0 if card.train > 10**6 else card.train  # ImageNet's stay on disk
    memory = _loaded(plan, tokens) + 2 * 3 * _weights(plan)
    return Needs(
        training=Training(plan.shape, plan.batch),
        memory=memory,
        kept=_weights(plan) * (len(plan.milestones) + KEPT),
        scratch=_weights(plan) * CHECKPOINT,
    )


def rate_search(given: Given, plan: Recipe) -> Needs:
    """A training for each rate, in a folder of its own, with its last weights and its checkpoints."""
    found = pretrain(given, plan)
    return replace(found, kept=_weights(plan) * RATES_TRIED * (1 + KEPT))


def released_loss(given: Given, plan: Recipe) -> Needs:
    """A pass in float32, of tokens that stay on disk."""
    passing = PASSING["float32"] * FLOAT * LOSS_BATCH * plan.shape.n_ctx * plan.shape.n_embd
    return Needs(_weights(plan), passing, memory=_loaded(plan))


def samples(given: Given, plan: Recipe) -> Needs:
    """Weights in float32, and of each image drawn at once the keys and values."""
    shape = plan.shape
    cache = FLOAT * DRAWN * 2 * shape.n_layer * shape.n_ctx * shape.n_embd
    return Needs(other=lambda: _weights(plan) + cache, memory=_loaded(plan))


def linear_probe(given: Given, plan: Recipe) -> Needs:
    """The trained and the untrained network; the layers' features of one of them on disk; pictures, and what is made of them."""
    card, shape = data_card(str(given["dataset"])), plan.shape
    layers = chosen_layers(str(given["layers"]), last=shape.n_layer)
    images, pixels = card.train + card.test, plan.side**2 * card.channels
    wide = max(shape.n_embd, pixels) if has_pictures(card) else shape.n_embd
    return Needs(
        *_network(plan, networks=2),
        other=lambda: _probe(given, wide),
        memory=_loaded(plan, images, networks=2) + (2 * FLOAT * images * pixels if has_pictures(card) else 0),
        scratch=_features(plan, card.train + _looks(given), len(layers), str(given["precision"])),
    )


def concatenated(given: Given, plan: Recipe) -> Needs:
    """Some layers' features on disk, and side by side in the machine's memory, twice for the refit."""
    card, layers = data_card(str(given["dataset"])), min(int(given["layers"]), plan.shape.n_layer + 1)
    images = card.train + card.test
    return Needs(
        *_network(plan),
        other=lambda: _probe(given, layers * plan.shape.n_embd),
        memory=_loaded(plan, images) + 2 * _features(plan, images, layers),
        scratch=_features(plan, images, layers),
    )


def milestones(given: Given, plan: Recipe) -> Needs:
    """Every layer's features at one milestone at a time."""
    card = data_card(str(given["dataset"]))
    whole = int(given["images"]) or card.train
    return Needs(
        *_network(plan),
        other=lambda: _probe(given, plan.shape.n_embd, whole),
        memory=_loaded(plan, whole + card.test) + 2 * _features(plan, whole + card.test, 1),
        scratch=_features(plan, whole + card.test, plan.shape.n_layer + 1, str(given["precision"])),
    )


def low_data(given: Given, plan: Recipe) -> Needs:
    """One layer's features of two networks; pictures; a fine-tune in batches of 16 on the fewest labels."""
    card = data_card(str(given["dataset"]))
    images = card.train + card.test
    pixels = FLOAT * images * plan.side**2 * card.channels if has_pictures(card) else 0
    return Needs(
        *_network(plan, networks=2),
        training=Training(plan.shape, 16, card.classes),
        memory=_loaded(plan, images, networks=2) + pixels + 2 * 3 * _weights(plan),
        scratch=_features(plan, images, 2) + _weights(plan) * (KEPT + CHECKPOINT),
    )


def settings(given: Given, plan: Recipe) -> Needs:
    """One layer's features of some images, which stay."""
    card = data_card(str(given["dataset"]))
    images = min(int(given["subset"]), card.train)
    features = _features(plan, images + card.validation, 1)
    return Needs(
        *_network(plan),
        other=lambda: _probe(given, plan.shape.n_embd, images),
        memory=_loaded(plan, card.train) + 4 * features,
        kept=features,
    )


def sgd_probe(given: Given, plan: Recipe) -> Needs:
    """Every layer's features of a part on disk, then the chosen layers' of all images, in half precision."""
    card, shape = data_card(str(given["dataset"])), plan.shape
    subset, count = min(int(given["subset"]), card.train), int(given["count"])
    width, outputs = count * shape.n_embd, len(SGD_RATES) * card.classes
    part, everything = _features(plan, 1.25 * subset, shape.n_layer + 1), card.train + _looks(given)
    return Needs(
        *_network(plan),
        other=lambda: max(_probe(given, shape.n_embd, subset), FLOAT * width * (5 * outputs + 2 * BLOCK)),
        memory=_loaded(plan),
        scratch=max(part, _features(plan, everything, count, "float16")),
    )


def fine_tune(given: Given, plan: Recipe) -> Needs:
    """One training at a time, beside the pre-trained weights; a checkpoint's content in memory as it is written."""
    card = data_card(str(given["dataset"]))
    tokens = 0 if card.train > 10**6 else card.train + card.test
    return Needs(
        training=Training(plan.shape, 128, card.classes),
        memory=_loaded(plan, tokens) + 2 * 3 * _weights(plan),
        scratch=_weights(plan) * (KEPT + CHECKPOINT),
    )
