"""The recipes by model: the paper's (section 3.4 and appendix A), and ours for the tiny, laptop and small tiers.

Of table 5's rates only iGPT-S's were read in the paper; the others are from memory and marked so in
``experiments/published.csv``. A stage's signature includes its own recipe only, so that changing one leaves other records
valid.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from igpt.errors import UsageError
from igpt.shape import SIZES, ModelShape, Objective
from igpt.train.recipe import Recipe


class Setting(NamedTuple):
    """Settings shared by the models of one of our tiers."""

    dataset: str
    side: int  # pixels
    colours: int
    batch: int  # images
    steps: int
    warmup: int  # steps
    shifts: bool = False


class Row(NamedTuple):
    """Blocks, width, heads, and the learning rates of both objectives."""

    n_layer: int
    n_embd: int
    n_head: int
    rate: float
    bert_rate: float


# Rates were searched as in appendix A, from large to small until the validation loss after 2,000 steps rises, with seed
# 100, which no record uses; the tier's own runs are shorter, to take minutes. In nats, tiny-s: 1.471 at
# 0.04, 1.435 at 0.02, 1.469 at 0.01; tiny-m: 1.419 at 0.02, 1.396 at 0.01; tiny-l: 1.351 at 0.01, 1.330 at
# 0.006, 1.340 at 0.003; its BERT: 1.489 at 0.006, 1.397 at 0.003, 1.405 at 0.0015. The other two BERT models,
# which no experiment uses, take the autoregressive rate.
TINY = {
    "tiny-s": Row(2, 16, 1, 0.02, 0.02),
    "tiny-m": Row(3, 24, 2, 0.01, 0.01),
    "tiny-l": Row(4, 48, 3, 0.006, 0.003),
}

# Sizes that two cores can train and evaluate in two hours. Rates from the notebook rate_search, whose records
# the book shows; the other two BERT models, which no experiment uses, take the autoregressive rate.
LAPTOP = {
    "laptop-s": Row(2, 64, 1, 0.012, 0.012),
    "laptop-m": Row(3, 96, 2, 0.006, 0.006),
    "laptop-l": Row(4, 128, 2, 0.003, 0.006),
}

# Sizes that one H100 can train in an hour. Not run yet, so neither sizes nor rates are searched: the rate is the paper's for
# iGPT-S, which is as wide as small-l.
SMALL = {
    "small-s": Row(6, 192, 3, 0.003, 0.003),
    "small-m": Row(10, 256, 4, 0.003, 0.003),
    "small-l": Row(12, 512, 8, 0.003, 0.003),
}

OURS = (
    (TINY, Setting("digits", 8, 16, batch=16, steps=1250, warmup=50, shifts=True)),
    (LAPTOP, Setting("cifar10", 16, 512, batch=32, steps=2000, warmup=100)),
    # Eleven epochs of the 90 % that are not held out; the first is the warm-up, as published.
    (SMALL, Setting("tiny-imagenet", 32, 512, batch=128, steps=8000, warmup=703)),
)
TRAINED = tuple(name for rows, _ in OURS for name in rows)  # the models that are trained here

# Size, side in pixels, and the rates (autoregressive, BERT). experiments/published.csv notes how certain each rate is:
# iGPT-S was read, the others are from memory, 48x48 and BERT "very unsure".
PAPER: dict[str, tuple[str, int, float, float | None]] = {
    "igpt-s": ("igpt-s", 32, 0.003, 0.01),
    "igpt-m": ("igpt-m", 32, 0.003, 0.003),
    "igpt-l": ("igpt-l", 32, 0.001, 0.001),
    "igpt-l-48": ("igpt-l", 48, 0.01, None),
    "igpt-xl": ("igpt-xl", 64, 0.0003, None),
}

# Blocks, width and heads; colours; positions.
CUSTOM = re.compile(r"custom-(\d+)x(\d+)x(\d+)-(\d+)-(\d+)(-biases)?")


def recipe(model: str, objective: Objective = "autoregressive") -> Recipe:
    """The recipe of a model by name; names like ``custom-24x512x8-512-1024`` give the shape of weights from elsewhere, and end
    in ``-biases`` where these have biases.

    Raises UsageError for an unknown model or objective, or a pair that is not in the paper.

    >>> recipe("igpt-s").steps, recipe("igpt-s").batch, recipe("igpt-s").learning_rate
    (1000000, 128, 0.003)
    """
    if objective not in ("autoregressive", "bert"):
        raise UsageError(f"there is no objective {objective!r}; choose autoregressive or bert")
    for rows, setting in OURS:
        if model in rows:
            return _ours(model, objective, rows[model], setting)
    if model in PAPER and (objective == "autoregressive" or PAPER[model][3]):
        return _paper(model, objective)
    if sizes := CUSTOM.fullmatch(model):
        return _custom(model, objective, sizes)
    raise UsageError(f"there is no {objective} model {model!r}; choose one of {', '.join(known_models(objective))}")


def known_models(objective: Objective = "autoregressive") -> list[str]:
    """The models that have a recipe for an objective, the smallest first."""
    return [*TRAINED, *(name for name, row in PAPER.items() if objective == "autoregressive" or row[3])]


def model_of(shape: ModelShape) -> str:
    """The name of the recipe with this shape, or a ``custom-`` name; no recipe has biases.

    >>> model_of(ModelShape(24, 512, 8, 512, 1024)), model_of(ModelShape(2, 16, 4, 8, 9))
    ('igpt-s', 'custom-2x16x4-8-9')
    """
    for name in known_models(shape.objective):
        if recipe(name, shape.objective).shape == shape:
            return name
    ending = "-biases" if shape.biases else ""
    return f"custom-{shape.n_layer}x{shape.n_embd}x{shape.n_head}-{shape.n_vocab}-{shape.n_ctx}{ending}"


def _custom(model: str, objective: Objective, sizes: re.Match[str]) -> Recipe:
    """A recipe for weights from elsewhere: only their shape is known.

    The batch, and the rate from which fine-tuning's rates are derived, are the paper's for iGPT-S.
    """
    try:
        *numbers, biases = sizes.groups()
        n_layer, n_embd, n_head, n_vocab, n_ctx = map(int, numbers)
        shape = ModelShape(n_layer, n_embd, n_head, n_vocab, n_ctx, objective, biases=biases is not None)
    except ValueError as error:
        raise UsageError(f"{model} is no model: {error}") from None
    if model_of(shape) != model:
        raise UsageError(f"the model of {model} is called {model_of(shape)}: write that")
    small = _paper("igpt-s", objective)
    return replace(small, name=model, shape=shape, dataset="", palette_colours=shape.n_vocab, milestones=(1,))


def _ours(model: str, objective: Objective, row: Row, setting: Setting) -> Recipe:
    """A recipe of one of our tiers."""
    return Recipe(
        name=model,
        shape=ModelShape(row.n_layer, row.n_embd, row.n_head, setting.colours, setting.side**2, objective),
        dataset=setting.dataset,
        palette_colours=setting.colours,
        batch=setting.batch,
        steps=setting.steps,
        warmup=setting.warmup,
        learning_rate=row.rate if objective == "autoregressive" else row.bert_rate,
        shifts=setting.shifts,
    )


def _paper(model: str, objective: Objective) -> Recipe:
    """ImageNet as published: a million steps of 128 images (XL: two million of 64), one epoch of warm-up."""
    size, resolution, rate, bert_rate = PAPER[model]
    n_layer, n_embd, n_head = SIZES[size]
    published = Recipe(
        name=model,
        shape=ModelShape(n_layer, n_embd, n_head, 512, resolution**2, objective),
        dataset="imagenet",
        palette_colours=512,
        batch=128,
        steps=1_000_000,
        warmup=9_609,  # one epoch of the 96 % that are not held out
        learning_rate=rate if objective == "autoregressive" else bert_rate or rate,
        milestones=(0.065, 0.131, 0.262, 0.524, 1),
    )
    if model == "igpt-xl":
        # Two million steps; an epoch of ImageNet plus 100 million web images would be most of them, so
        # the warm-up is one epoch of ImageNet here too.
        return replace(published, batch=64, steps=2_000_000, warmup=19_218)
    return published
