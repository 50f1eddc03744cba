"""The dimensions of an Image GPT; separate from the model, so that they can be imported without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from reprlib import repr as shortly
from typing import Literal, get_args

Objective = Literal["autoregressive", "bert"]

# Section 3.3 and the released flags; the number of heads of XL is unpublished (16 is our choice).
SIZES: dict[str, tuple[int, int, int]] = {
    "igpt-s": (24, 512, 8),
    "igpt-m": (36, 1024, 8),
    "igpt-l": (48, 1536, 16),
    "igpt-xl": (60, 3072, 16),
}


MOST = 2**31 - 1  # limit of each dimension, so that arithmetic with them stays fast


@dataclass(frozen=True)
class ModelShape:
    """Everything that determines the weights' shapes: blocks, width, heads, colours, positions, objective, biases.

    biases : whether the four matrices of each block have one each. The released models have none; those that were
    fine-tuned with transformers do

    >>> ModelShape(n_layer=24, n_embd=512, n_head=8, n_vocab=512, n_ctx=1024).parameters
    76571648
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_vocab: int
    n_ctx: int
    objective: Objective = "autoregressive"
    biases: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown objective, numbers that are not positive integers, heads that do not divide, and biases
        other than True and False.
        """
        if self.objective not in get_args(Objective):
            raise ValueError(f"there is no objective {shortly(self.objective)}")
        for name in ("n_layer", "n_embd", "n_head", "n_vocab", "n_ctx"):
            if type(number := getattr(self, name)) is not int or not 1 <= number <= MOST:
                raise ValueError(f"{name} is a whole number from 1 to {MOST:,}, not {shortly(number)}")
        if type(self.biases) is not bool:
            raise ValueError(f"biases is true or false, not {shortly(self.biases)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"{self.n_head} heads do not divide a width of {self.n_embd}")

    @property
    def parameters(self) -> int:
        """Number of weights: those of L blocks, + C + 2 V C + T C, plus C for the start vector (autoregressive)."""
        width = self.n_embd
        blocks = self.n_layer * self.block_parameters + width
        start = width if self.objective == "autoregressive" else 0
        return blocks + 2 * self.n_vocab * width + self.n_ctx * width + start

    @property
    def block_parameters(self) -> int:
        """Number of weights of a block: 12 C^2 + 2 C, plus 9 C with biases."""
        return 12 * self.n_embd**2 + (11 if self.biases else 2) * self.n_embd

    def as_dict(self) -> dict[str, int | str]:
        """The fields by name, as in ``config.json``; ``biases`` only if there are any, as in files from before it existed."""
        return {name: value for name, value in asdict(self).items() if name != "biases" or value}
