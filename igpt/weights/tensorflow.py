"""The released checkpoints, read without TensorFlow: ``PREFIX.index`` and ``PREFIX.data-00000-of-00032`` ...

A shard is the concatenation of variables' bytes (`igpt.weights.tensorflow_index` reads their offsets). Names and layout of
the variables: ``src/model.py`` of openai/image-gpt. Variables are read, checked and copied into the model one at a time, so
that the memory needed is that of the model and its largest matrix.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.weights.check import check_fits, check_weights, shapes_of
from igpt.weights.tensorflow_index import FLOAT32, Index, Variable, masked_crc, read_index


def read_tensorflow(prefix: Path) -> ImageGPT:
    """The model of a released checkpoint, in evaluation mode on the CPU; its shape is read from the variables.

    prefix : the path without ``.index``, such as ``igpt-s/model.ckpt-1000000``
    A class head (``model/clf/wclf``) and an optimiser's variables are ignored, as the released code does.
    Raises UsageError for a missing, truncated or damaged file, a checkpoint of another model, or NaN or infinite numbers.
    """
    index = read_index(prefix)
    shape = shape_of(index)
    check_fits(prefix, shape, tensors=len(index.variables), size=sum(v.size for v in index.variables.values()))
    targets = _targets(shape)
    _check_names(index, targets)
    _check_shards(index)
    with torch.device("meta"):
        model = ImageGPT(shape)
    model.to_empty(device="cpu")
    state = model.state_dict()
    with torch.no_grad():
        for name, (parameter, rows, transposed, _) in targets.items():
            target = state[parameter] if rows is None else state[parameter][rows]
            variable = index.variables[name]
            values = torch.from_numpy(np.frombuffer(_read(index.shard(variable.shard), name, variable), "<f4"))
            target.copy_(values.reshape(target.T.shape).T if transposed else values.reshape(target.shape))
    check_weights(state, shapes_of(model), prefix)
    return model.eval()


def shape_of(index: Index) -> ModelShape:
    """The model's shape, from the variables' names and shapes. Raises UsageError for those of another kind of model."""
    variables = index.variables
    layers = {int(m[1]) for name in variables if (m := re.fullmatch(r"model/h(\d{1,6})/ln_1/g", name))}
    try:
        if not layers:
            raise ValueError("it has no block")
        n_vocab, n_embd = variables["model/wte"].shape
        n_ctx, _ = variables["model/wpe"].shape
        n_head, _, _ = variables["model/h0/attn/q_proj"].shape
        objective = "autoregressive" if "model/sos" in variables else "bert"
        return ModelShape(max(layers) + 1, n_embd, n_head, n_vocab, n_ctx, objective)  # type: ignore[arg-type]
    except (KeyError, ValueError) as error:
        raise UsageError(f"{index.prefix} is not a checkpoint of Image GPT ({error}): give one of the released ones") from None


def check_shard(index: Index, shard: int, path: Path) -> None:
    """Raise UsageError unless a shard's weights in the file at ``path`` match their checksums."""
    for name, variable in index.weights.items():
        if variable.shard == shard:
            _read(path, name, variable)


class _Target(NamedTuple):
    """Our parameter, its rows, whether the matrix is transposed, and the variable's shape."""

    parameter: str
    rows: slice | None
    transposed: bool
    shape: tuple[int, ...]


def _targets(shape: ModelShape) -> dict[str, _Target]:
    """The target of each variable, by name. q, k and v are stored (head, out, in) as ours; the other matrices (in, out)."""
    width, heads = shape.n_embd, (shape.n_head, shape.n_embd // shape.n_head, shape.n_embd)
    rows = {"wte": shape.n_vocab, "wpe": shape.n_ctx, "wtet": shape.n_vocab}
    targets = {f"model/{name}": _Target(name, None, False, (number, width)) for name, number in rows.items()}
    targets["model/ln_f/g"] = _Target("ln_f.g", None, False, (width,))
    if shape.objective == "autoregressive":
        targets["model/sos"] = _Target("sos", None, False, (width,))
    for layer in range(shape.n_layer):
        ours, theirs = f"blocks.{layer}", f"model/h{layer}"
        for norm in ("ln_1", "ln_2"):
            targets[f"{theirs}/{norm}/g"] = _Target(f"{ours}.{norm}.g", None, False, (width,))
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part_rows = slice(part * width, (part + 1) * width)
            targets[f"{theirs}/attn/{name}"] = _Target(f"{ours}.attn.qkv.weight", part_rows, False, heads)
        targets[f"{theirs}/attn/c_proj"] = _Target(f"{ours}.attn.c_proj.weight", None, True, heads)
        targets[f"{theirs}/mlp/c_fc/w"] = _Target(f"{ours}.c_fc.weight", None, True, (width, 4 * width))
        targets[f"{theirs}/mlp/c_proj/w"] = _Target(f"{ours}.c_proj.weight", None, True, (4 * width, width))
    return targets


def _check_names(index: Index, targets: dict[str, _Target]) -> None:
    """Raise UsageError for a missing or unknown weight, or one of another shape or dtype."""
    weights = index.weights
    faults = [f"{name} is missing" for name in targets if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in targets]
    for name, weight in weights.items():
        shape = targets[name].shape if name in targets else weight.shape
        if weight.shape != shape or weight.dtype != FLOAT32 or weight.size != 4 * math.prod(shape):
            faults.append(f"{name} has shape {weight.shape} and type {weight.dtype}")
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UsageError(f"{index.prefix} is not a checkpoint of Image GPT: {'; '.join(faults[:3])}{more}")


def _check_shards(index: Index) -> None:
    """Raise UsageError, before any shard is read, for shards that are missing or shorter than the index requires."""
    if missing := [path.name for path in index.weight_shards.values() if not path.exists()]:
        raise UsageError(f"{index.prefix} lacks {len(missing)} of its {index.shards} shards, {missing[0]} first: copy them too")
    for number, path in index.weight_shards.items():
        variables = [variable for variable in index.variables.values() if variable.shard == number]
        needed = max(max(v.offset + v.size for v in variables), sum(v.size for v in variables))  # variables do not overlap
        try:
            if (size := file_size(path)) < needed:
                raise ValueError(f"it is cut short at {size:,} of {needed:,} bytes")
        except (OSError, ValueError) as error:
            raise cannot_read(path, error) from None


def _read(path: Path, name: str, variable: Variable) -> bytearray:
    """A variable's bytes from its shard. Raises UsageError if they do not match its checksum."""
    with path.open("rb") as stream:
        stream.seek(variable.offset)
        content = bytearray(stream.read(variable.size))
    if len(content) != variable.size or masked_crc(content) != variable.crc:
        raise UsageError(f"{path} is damaged ({name} does not have its checksum): copy it again")
    return content
