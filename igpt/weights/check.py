"""The one check of weights from a file, whatever make it is of: names, shapes, dtypes, finite numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.model import ImageGPT
from igpt.shape import ModelShape

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # which all become float32 when they are loaded


def check_weights(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    where: Path | str,
    *,
    dtypes: Collection[torch.dtype] = FLOATS,
) -> None:
    """Raise UsageError unless ``tensors`` have just these names and shapes, one of ``dtypes``, and finite numbers only.

    where : the file or folder that they are from, for the message
    """
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            wrong.append(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(shape)}")
    if wrong:
        raise UsageError(f"{where} holds other tensors than its model has ({_first(wrong)}): copy it again, config.json too")
    wrong = [f"{name} is {_word(t.dtype)}" for name, t in tensors.items() if t.dtype not in dtypes]
    if wrong:
        known = ", ".join(map(_word, dtypes))
        raise UsageError(f"{where} holds tensors of a wrong kind ({_first(wrong)}): give dense tensors of {known}")
    wrong = [f"{int((~t.isfinite()).sum()):,} in {name}" for name, t in tensors.items() if not t.isfinite().all()]
    if wrong:
        raise UsageError(f"{where} holds numbers that are NaN or infinite ({_first(wrong)}): copy it again, or give others")


def shapes_of(model: ImageGPT) -> dict[str, torch.Size]:
    """The shapes of a model's weights by name; the model may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_shape(where: Path | str, found: ModelShape, wanted: ModelShape) -> None:
    """Raise UsageError unless weights have the shape that their place promises, a model's name or a recipe's folder."""
    if found != wanted:
        raise UsageError(
            f"the weights found as {where} have another shape ({_words(found)}) than they need ({_words(wanted)}): put the"
            " right ones there, or give these by a path"
        )


def _words(shape: ModelShape) -> str:
    """A shape in words."""
    numbers = f"{shape.n_layer} blocks of width {shape.n_embd}, {shape.n_head} heads, {shape.n_vocab} colours"
    return f"{numbers}, {shape.n_ctx} positions, {shape.parameters:,} parameters, {shape.objective}"


def _word(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")


def _first(wrong: list[str]) -> str:
    """The first of some faults, and how many more there are."""
    return wrong[0] + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
