"""Checks of weights read from any format: sizes first, then names, shapes, dtypes, and NaN or infinite numbers.

A small file can declare a model of any size, so no model is built or allocated before the files are found large enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igpt.errors import UsageError
from igpt.files import cannot_read, read_json
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.text import visible

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # all are converted to float32 on loading
NARROWEST = 2  # bytes of the narrowest of them


def read_fields(path: Path, what: str = "an Image GPT") -> dict[str, Any]:
    """The fields of a JSON file that describes ``what``. Raises UsageError when it is missing or damaged."""
    try:
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise ValueError("it has no fields")
        return fields
    except FileNotFoundError:
        raise UsageError(f"{path.parent} holds no weights: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, f"does not describe {what}") from None


def check_fits(where: Path | str, shape: ModelShape, *, tensors: int, size: int, output: bool = True) -> None:
    """Raise UsageError unless files of ``size`` bytes with ``tensors`` tensors can hold a model; for use before it is built.

    output : whether the files contain the output matrix
    """
    numbers = shape.parameters - (0 if output else shape.n_vocab * shape.n_embd)
    if shape.n_layer > tensors or NARROWEST * numbers > size:
        raise UsageError(
            f"{where} describes a model of {shape.n_layer:,} blocks and {numbers:,} numbers, and its weights are {tensors:,}"
            f" tensors of {size:,} bytes in all: copy everything again, from one place"
        )


def check_weights(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    where: Path | str,
    *,
    dtypes: Collection[torch.dtype] = FLOATS,
) -> None:
    """Raise UsageError unless ``tensors`` have exactly these names and shapes, one of ``dtypes``, and finite numbers only.

    where : file or folder of the tensors, for the message
    """
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is unknown" for name in tensors if name not in shapes]
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            faults.append(f"{name} has the shape {tuple(tensors[name].shape)}, not {tuple(shape)}")
    if faults:
        raise UsageError(f"{where} holds other tensors than its model has ({_first(faults)}): copy it again, config.json too")
    faults = [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in dtypes]
    if faults:
        known = ", ".join(map(str, dtypes))
        raise UsageError(f"{where} holds tensors of a wrong kind ({_first(faults)}): give dense tensors of {known}")
    faults = [f"{int((~t.isfinite()).sum()):,} in {name}" for name, t in tensors.items() if not t.isfinite().all()]
    if faults:
        raise UsageError(f"{where} holds numbers that are NaN or infinite ({_first(faults)}): copy it again, or give others")


def check_model(model: ImageGPT, where: Path) -> None:
    """Raise UsageError unless a model, once written into ``where``, can be read again."""
    if model.wtet is None:
        raise UsageError("these weights, like a classifier's, have no output matrix: export those of a generative model")
    check_weights(model.state_dict(), shapes_of(model), f"the model for {where}")


def shapes_of(model: ImageGPT) -> dict[str, torch.Size]:
    """The shapes of a model's weights by name; the model may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_shape(where: Path | str, shape: ModelShape, wanted: ModelShape) -> None:
    """Raise UsageError unless the weights called ``where`` have the shape that this name requires."""
    if shape != wanted:
        raise UsageError(
            f"the weights found as {where} have another shape ({shape_in_words(shape)}) than they need"
            f" ({shape_in_words(wanted)}): put the right ones there, or give these by a path"
        )


def shape_in_words(shape: ModelShape) -> str:
    """A shape in words."""
    numbers = f"{shape.n_layer} blocks of width {shape.n_embd}, {shape.n_head} heads, {shape.n_vocab} colours"
    biases = ", with biases" if shape.biases else ""
    return f"{numbers}, {shape.n_ctx} positions, {shape.parameters:,} parameters, {shape.objective}{biases}"


def _first(wrong: list[str]) -> str:
    """The first fault, and the number of further faults."""
    return visible(wrong[0], limit=200) + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
