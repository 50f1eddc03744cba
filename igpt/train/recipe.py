"""A recipe: all hyperparameters of a pre-training run except its seed, and its cost in floating-point operations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from igpt.shape import ModelShape


@dataclass(frozen=True)
class Recipe:
    """One pre-training run: Adam, linear warm-up, cosine to zero, no dropout, no weight decay. All are in `igpt.train.recipes`.

    >>> from igpt.train.recipes import recipe
    >>> recipe("tiny-s").milestone_steps
    [78, 156, 312, 625, 1250]
    """

    name: str
    shape: ModelShape
    dataset: str
    palette_colours: int  # 512: the released palette; other palettes are fitted to the data set
    batch: int  # images
    steps: int
    warmup: int  # steps
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)  # appendix A; epsilon is unpublished, PyTorch's 1e-8 is used
    mask_rate: float = 0.15  # BERT only, section 2.2
    shifts: bool = False  # pre-train on the nine one-pixel shifts of the training images
    # Steps after which weights are saved, as fractions of all; in the paper 65k .. 1000k (figure 3).
    milestones: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return math.isqrt(self.shape.n_ctx)

    @property
    def released_palette(self) -> bool:
        """Whether the tokens use the released palette."""
        return self.palette_colours == 512

    @property
    def milestone_steps(self) -> list[int]:
        """Steps after which weights are saved, the last step included."""
        return [round(self.steps * fraction) for fraction in self.milestones]

    def as_dict(self) -> dict[str, object]:
        """The fields by name, the shape's as `ModelShape.as_dict` gives them: what signatures, checkpoints and cards hold."""
        return {**asdict(self), "shape": self.shape.as_dict()}

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run."""
        return training_flops(self.shape, self.batch * self.steps)


def forward_flops(shape: ModelShape) -> float:
    """Floating-point operations of one image's forward pass: 2 per weight and token, and attention counted in full.

    >>> from igpt.train.recipes import recipe
    >>> f"{forward_flops(recipe('igpt-s').shape):.2e}"
    '2.07e+11'
    """
    weights = shape.parameters - shape.n_ctx * shape.n_embd
    return shape.n_ctx * (2 * weights + 4 * shape.n_layer * shape.n_embd * shape.n_ctx)


def training_flops(shape: ModelShape, images: float) -> float:
    """Floating-point operations of training on ``images`` images: the backward pass costs two forward passes."""
    return 3 * forward_flops(shape) * images
