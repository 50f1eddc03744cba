"""Trained models by name: the model of `igpt.model` with its weights loaded, and sampling as a method.

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
from igpt.palette import Palette
from igpt.project import Project, configured_folder
from igpt.shape import ModelShape
from igpt.train.recipes import PAPER, TINY, TRAINED, recipe
from igpt.weights.huggingface import is_huggingface
from igpt.weights.processor import BICUBIC, read_resample
from igpt.weights.read import read_palette, read_weights


class ImageGPT(Model):
    """The transformer with weights and sampling; everything else is inherited from `igpt.model.ImageGPT`.

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
        """Load the model that ``where`` names, in evaluation mode on the CPU.

        where : a recipe's name (``laptop-l``) whose weights are published with the package or trained in this checkout; a
        released model's (``igpt-s``, ``igpt-s-bert``; ``igpt-s@131000`` for the weights after that many steps), which is
        downloaded; a folder of weights, or of a training, also while it runs; or the path of a TensorFlow checkpoint without
        ``.index``
        Raises UsageError when there are no such weights, when they are damaged, and when they belong to a different model. A
        classifier of transformers has no output matrix: such a model has features, and raises UsageError for logits, loss and
        samples.
        """
        weights = read_weights(*locate_weights(where))
        with torch.device("meta"):
            model = cls(weights.shape)
        model.register_parameter("wtet", weights.wtet)
        model.load_state_dict(weights.state_dict(), assign=True)
        return model.eval()

    def sample(
        self, n: int, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
    ) -> Tensor:
        """Unconditional samples, tokens int64 (n, T); see `igpt.sample.sample`."""
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


def published_folder(name: str) -> Path | None:
    """The folder of a recipe's published weights: in the checkout, else in this package; None if there are none."""
    package = Path(__file__).parent
    for models in (Project(configured_folder("IGPT_ROOT", package.parent)).models, package / "weights" / "published"):
        if (models / name / "config.json").exists():
            return models / name
    return None


def locate_weights(where: str | Path, *, train: bool = False) -> tuple[str | Path, ModelShape | None]:
    """The location of named weights, and the shape that the name implies (None if it implies none).

    A recipe's name means its published weights, else those of its first seed trained in this checkout. Anything else is
    returned unchanged, for `igpt.weights.read.read_weights`.
    train : whether to train a missing model of the tiny tier first, which takes minutes
    Raises UsageError for a recipe without weights.
    """
    name = str(where)
    if name not in TRAINED:  # recipes take precedence over folders of the same name
        return where, recipe(name).shape if name in PAPER else None
    folder = published_folder(name)
    if folder is None:
        project = Project.here(f"{name}, which is not among the published weights,")
        from igpt.companion.run.trained import trained_weights  # science imports the companion here only

        folder = trained_weights(project, name, train=train and name in TINY)
    return folder, recipe(name).shape


def open_weights(model: str) -> tuple[Model, Palette]:
    """A model by its name or path, and the palette of its tokens; a missing model of the tiny tier is trained first.

    Raises UsageError as `locate_weights`, `igpt.weights.read.read_weights` and `igpt.weights.read.read_palette` do.
    """
    path, shape = locate_weights(model, train=True)
    weights = read_weights(path, shape)
    return weights, read_palette(path, weights.shape)


def resample_of(model: str) -> int:
    """Pillow's number of the filter that reduces pictures for a model: a transformers folder's own, else bicubic."""
    return read_resample(Path(model)) if model not in TRAINED and is_huggingface(Path(model)) else BICUBIC
