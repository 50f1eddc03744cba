"""Classifiers with their class names, read and written as transformers' ``ImageGPTForImageClassification``.

The logits are a linear head, without bias, on the final norm's output averaged over positions. Two conventions differ in the
network's input. transformers feeds the tokens as they are, so that position i reads token i. The released code, and
`igpt.evaluate.fine_tune`, feed them as in pre-training: shifted right by one behind the start vector. A classifier is exact
only in the convention in which it was fine-tuned. ``config.json`` tells them apart by the field ``igpt_shifted``, and
``igpt_resize`` says how pictures become square; transformers keeps and ignores both. A folder without them is in
transformers' convention, and its pictures are squeezed. To use a shifted classifier in
transformers, prepend the start token (``n_vocab``) to the tokens, and drop the last one.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortly
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from igpt.errors import UsageError
from igpt.files import write_text
from igpt.model import ImageGPT
from igpt.palette import Palette
from igpt.pictures import Resize
from igpt.text import visible
from igpt.weights.check import check_weights, read_fields
from igpt.weights.huggingface import HEAD, read_with_head, their_config, their_tensors
from igpt.weights.own import save_tensors
from igpt.weights.processor import write_processor
from igpt.weights.read import read_palette

SHIFTED, RESIZED = "igpt_shifted", "igpt_resize"
LONGEST = 255  # characters of a class's name
# Control characters, surrogates, ends of lines and paragraphs; all other characters occur in some script's names.
CONTROLS = ("Cc", "Cs", "Zl", "Zp")
REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the order of the text that follows


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A network with a linear head on its pooled final features.

    network : its ``wtet`` may be None
    head : float32 (classes, C)
    names : of the classes, in the order of the head's rows
    palette : of the tokens
    shifted : whether the network's input is shifted behind the start vector; see this module's documentation
    resize : how its pictures were fitted, see `igpt.pictures.Resize`
    """

    network: ImageGPT
    head: Tensor
    names: tuple[str, ...]
    palette: Palette
    shifted: bool
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        """Raise UsageError for parts that do not fit each other, less than two classes, and names as `check_names` does."""
        shape = self.network.shape
        if self.head.ndim != 2 or self.head.dtype != torch.float32 or len(self.head) < 2 or self.head.shape[1] != shape.n_embd:
            raise UsageError(
                f"a head is float32 of at least two classes by {shape.n_embd}, this one is {self.head.dtype}"
                f" {tuple(self.head.shape)}: give a classifier's"
            )
        if len(self.names) != len(self.head):
            raise UsageError(f"{len(self.names)} classes are named, and the head has {len(self.head)}: give a name for each")
        if len(self.palette) != shape.n_vocab:
            raise UsageError(
                f"the palette has {len(self.palette)} colours, and the network {shape.n_vocab}: give its own palette"
            )
        check_names(self.names, "a classifier")


@torch.no_grad()
def class_logits(classifier: ImageClassifier, tokens: Tensor) -> Tensor:
    """Logits of the classes, float32 (B, classes), in the convention in which the classifier was fine-tuned.

    tokens : int64 (B, T), palette indices, on the network's device

    >>> import numpy as np
    >>> from igpt.shape import ModelShape
    >>> network = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> greys = Palette(np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
    >>> classifier = ImageClassifier(network, torch.zeros(2, 16), ("cat", "dog"), greys, shifted=True)
    >>> class_logits(classifier, torch.zeros(4, 9, dtype=torch.int64)).softmax(1)[0]
    tensor([0.5000, 0.5000])
    """
    hidden = classifier.network.hidden(tokens, shifted=classifier.shifted)
    pooled = hidden.mean(dim=1, dtype=torch.float32)
    return F.linear(pooled, classifier.head.to(pooled.device))


def read_classifier(folder: Path) -> ImageClassifier:
    """The classifier of a folder, its network in evaluation mode on the CPU.

    Classes without names are called ``LABEL_0``, ``LABEL_1`` and so on, as in transformers.
    Raises UsageError for weights without a head, a head that does not choose one class (a regression's, or one of several
    labels), names that do not fit the head, and as `read_with_head` and `read_palette` do.
    """
    path = folder / "config.json"
    config = read_fields(path, "a classifier")
    if config.get("model_type") != "imagegpt":
        raise UsageError(f"{folder} is no classifier's folder in transformers' format: give one that a fine-tune has written")
    network, head = read_with_head(folder)
    if head is None:
        raise UsageError(f"{folder} holds weights without a head ({HEAD}), which name no classes: give a classifier's folder")
    problem, shifted = config.get("problem_type"), config.get(SHIFTED, False)
    if problem not in (None, "single_label_classification") or len(head) < 2:
        raise UsageError(
            f"{path} describes a head that does not choose one of several classes (problem_type {shortly(problem)}, outputs"
            f" {len(head)}): give a classifier's folder"
        )
    if type(shifted) is not bool:
        raise UsageError(f"{path} has {SHIFTED} {shortly(shifted)}, which is true or false: copy it again")
    resize = config.get(RESIZED, "squeeze")  # transformers squeezes pictures
    if resize not in get_args(Resize):
        raise UsageError(f"{path} has {RESIZED} {shortly(resize)}, which is crop or squeeze: copy it again")
    names = _read_names(path, config, classes=len(head))
    return ImageClassifier(network, head, names, read_palette(folder, network.shape), shifted, resize)


def write_classifier(folder: Path, classifier: ImageClassifier) -> None:
    """Write a classifier into an empty or new folder, for `read_classifier` and transformers; ``config.json`` is last.

    An output matrix is written too, so that the network keeps its loss and samples; transformers reports it as unexpected when
    it opens the classifier.
    Raises UsageError for a folder with files, a BERT network, for which transformers has no class, and NaN or infinite weights.
    """
    network, names = classifier.network, classifier.names
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already: name a folder that is not")
    tensors = {**their_tensors(network), HEAD: classifier.head}
    check_weights(tensors, {name: tensor.shape for name, tensor in tensors.items()}, f"the classifier for {folder}")
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_processor(folder, classifier.palette, side=math.isqrt(network.shape.n_ctx))
    config = {
        **their_config(network.shape, "ImageGPTForImageClassification"),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        **({SHIFTED: True} if classifier.shifted else {}),
        **({RESIZED: classifier.resize} if classifier.resize != "squeeze" else {}),
    }
    write_text(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def check_names(names: Sequence[str], where: Path | str) -> None:
    """Raise UsageError for a class's name that is empty or too long, or has characters that do not belong into a line.

    where : what has the classes, for the message
    """
    for number, name in enumerate(names):
        unprintable = any(unicodedata.category(c) in CONTROLS or c in REORDERING for c in name)
        if unprintable or not name.strip() or len(name) > LONGEST:
            raise UsageError(
                f"{where} calls class {number} '{visible(name, limit=40)}', and a name has 1 to {LONGEST} characters without"
                " control characters: rename it"
            )


def _read_names(path: Path, config: dict[str, Any], *, classes: int) -> tuple[str, ...]:
    """The names in a ``config.json``: transformers takes those of ``id2label``. Raises UsageError if they do not fit."""
    named, numbers = config.get("id2label"), config.get("label2id")
    order = [str(number) for number in range(classes)]
    if named is None:
        return tuple(f"LABEL_{number}" for number in order)
    if not isinstance(named, dict) or named.keys() != {*order} or not all(isinstance(name, str) for name in named.values()):
        raise UsageError(f"{path} does not name the {classes} classes of its head (id2label {shortly(named)}): copy it again")
    names = tuple(named[number] for number in order)
    check_names(names, path)
    known = set(names)  # other names in label2id are left over from the defaults
    for name, number in numbers.items() if isinstance(numbers, dict) else ():
        if name in known and (type(number) not in (int, str) or named.get(str(number)) != name):
            raise UsageError(
                f"{path} has two orders of its classes (id2label and label2id differ in '{visible(name, limit=40)}'): copy it"
                " again"
            )
    return names
