"""What a run costs, from shapes alone: floating-point operations and hours on a card."""

from __future__ import annotations

from igpt.shape import ModelShape
from igpt.train.recipe import Recipe

# What pending cells are priced at: an 80-GiB H100 at 40 % of its 989 dense bfloat16 TFLOP/s (data sheet).
CARD = "H100"
UTILISATION = 0.40
CARD_FLOPS = UTILISATION * 989e12
CORES_FLOPS = 2.5e11  # what a training step of the laptop tier reaches on two cores with half precision, as measured


def forward_flops(shape: ModelShape) -> float:
    """Operations of one image's forward pass: 2 a weight and token, and attention counted in full.

    >>> from igpt.train.recipes import recipe
    >>> f"{forward_flops(recipe('igpt-s').shape):.2e}"
    '2.07e+11'
    """
    weights = shape.parameters - shape.n_ctx * shape.n_embd
    return shape.n_ctx * (2 * weights + 4 * shape.n_layer * shape.n_embd * shape.n_ctx)


def training_flops(shape: ModelShape, images: float) -> float:
    """Operations of training on ``images`` images: a forward pass and twice as much for the backward."""
    return 3 * forward_flops(shape) * images


def pretraining_flops(recipe: Recipe) -> float:
    """Operations of a whole pre-training run."""
    return training_flops(recipe.shape, recipe.batch * recipe.steps)


def gpu_hours(flops: float) -> float:
    """Hours of one card at the stated rate."""
    return flops / CARD_FLOPS / 3600
