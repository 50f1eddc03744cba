"""A recipe: every choice that decides a pre-training run, up to its seed; `igpt.train.recipes` has those that are run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from igpt.shape import ModelShape


@dataclass(frozen=True)
class Recipe:
    """One pre-training run, up to its seed. Adam, linear warm-up, cosine to zero, no dropout, no weight decay.

    >>> from igpt.train.recipes import recipe
    >>> recipe("tiny-s").milestone_steps
    [78, 156, 312, 625, 1250]
    """

    name: str
    shape: ModelShape
    dataset: str
    palette_colours: int  # 512: those released with the paper; other palettes are fitted to the data set
    batch: int  # images
    steps: int
    warmup: int  # steps
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)  # appendix A; epsilon is unpublished, PyTorch's 1e-8 is used
    mask_rate: float = 0.15  # BERT only, section 2.2
    shifts: bool = False  # pre-train on the nine one-pixel shifts of the training images
    # Where weights are kept, as fractions of the steps; the paper's 65k .. 1000k of figure 3.
    milestones: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)

    @property
    def side(self) -> int:
        """Pixels a side of the images."""
        return math.isqrt(self.shape.n_ctx)

    @property
    def released_palette(self) -> bool:
        """Whether the tokens are the paper's."""
        return self.palette_colours == 512

    @property
    def milestone_steps(self) -> list[int]:
        """Steps after which weights are kept, the last step included."""
        return [round(self.steps * part) for part in self.milestones]
