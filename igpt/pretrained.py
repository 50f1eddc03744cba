"""Image GPT as most will use it: the model of `igpt.model`, with weights found by name and sampling at hand.

from igpt import ImageGPT
model = ImageGPT.from_pretrained("igpt-s")
tokens = model.sample(n=8, seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from igpt import sample as sampling
from igpt.model import ImageGPT as Model
from igpt.weights.read import read_weights


class ImageGPT(Model):
    """The transformer, its weights and its samples. Everything else is inherited from `igpt.model.ImageGPT`.

    >>> from igpt import ImageGPT
    >>> from igpt.shape import ModelShape
    >>> model = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> model.sample(n=3, seed=0).shape
    torch.Size([3, 9])
    >>> model.complete(model.sample(n=1)[:, :4], n=5).shape
    torch.Size([1, 5, 9])
    """

    @classmethod
    def from_pretrained(cls, where: str | Path) -> Self:
        """The model that ``where`` names, in evaluation mode on the CPU.

        where : a recipe's name (``laptop-l``) whose weights are published or trained in this checkout; a released model's
        (``igpt-s``, ``igpt-s-bert``; ``igpt-s@131000`` after so many steps), which is downloaded; a folder; or the path of a
        TensorFlow checkpoint without ``.index``
        Raises UsageError when there is none, when it is damaged, and when another model lies under the name. Weights of a
        classifier have no output matrix: their model gives features, and raises UsageError for logits, loss and samples.
        """
        from igpt.companion.run.samples import weights_place

        found = read_weights(*weights_place(where))
        with torch.device("meta"):
            model = cls(found.shape)
        model.register_parameter("wtet", found.wtet)
        model.load_state_dict(found.state_dict(), assign=True)
        return model.eval()

    def sample(
        self,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Images from nothing, tokens int64 (n, T); see `igpt.sample.sample`."""
        return sampling.sample(self, n=n, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)

    def complete(
        self,
        prefix: Tensor,
        *,
        n: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Continuations of int64 (B, P), tokens int64 (B, n, T); see `igpt.sample.complete`."""
        return sampling.complete(self, prefix, n=n, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
