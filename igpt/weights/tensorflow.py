"""The released checkpoints, read without TensorFlow: ``PREFIX.index`` and ``PREFIX.data-00000-of-00032`` ...

The index is a sorted table of LevelDB's format: variable names to shape, shard, offset, size and checksum; a shard is the
variables' bytes one after the other. Names and layout of the variables: ``src/model.py`` of openai/image-gpt.
One variable at a time is read, checked and put in its place, so memory holds the model and its largest matrix.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from crc32c import crc32c
from numpy.typing import NDArray

from igpt.errors import UsageError
from igpt.files import cannot_read, file_size, read_whole
from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.weights.check import check_fits, check_weights, shapes_of

_MAGIC = 0xDB4775248B80FB57  # the last eight bytes of a LevelDB table
_FLOAT32 = 1  # DT_FLOAT
_LARGEST_INDEX = 1 << 18  # bytes; iGPT-L's is some twenty thousand, and three times that with an optimiser
_LONGEST_NAME = 256  # bytes; the released ones have fewer than fifty


class _Damaged(Exception):
    """What is wrong with a file."""


class DamagedFile(UsageError):
    """A file of a checkpoint that is missing, cut or damaged: which, and what is wrong with it, without any advice."""

    def __init__(self, path: Path, error: UsageError) -> None:
        super().__init__(str(error))
        self.path = path
        self.fault = str(error).removeprefix(f"{path} ").rpartition(": ")[0]


@dataclass(frozen=True)
class Variable:
    """Where a variable lies: its shape, and the bytes of its shard; ``crc`` is LevelDB's masked CRC-32C."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class Index:
    """A checkpoint's variables by name, and its number of shards."""

    prefix: Path
    shards: int
    variables: dict[str, Variable] = field(default_factory=dict)

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")


def read_tensorflow(prefix: Path) -> ImageGPT:
    """The model of a released checkpoint, in evaluation mode on the CPU; its shape is read from the variables.

    prefix : the path without ``.index``, such as ``igpt-s/model.ckpt-1000000``
    A class head (``model/clf/wclf``) and an optimiser's variables are left where they are: the released code
    restores neither. Raises UsageError for a missing, cut or damaged file, a checkpoint of another model, or numbers that
    are not finite.
    """
    index = read_index(prefix)
    shape = shape_of(index)
    check_fits(prefix, shape, tensors=len(index.variables), size=sum(v.size for v in index.variables.values()))
    places = _places(shape)
    _check_names(index, places)
    _check_shards(index, {index.variables[name].shard for name in places})
    with torch.device("meta"):
        model = ImageGPT(shape)
    model.to_empty(device="cpu")
    state = model.state_dict()
    with torch.no_grad():
        for name, (parameter, rows, transposed, _) in places.items():
            target = state[parameter] if rows is None else state[parameter][rows]
            values = torch.from_numpy(_read(index, name)).reshape(target.T.shape if transposed else target.shape)
            target.copy_(values.T if transposed else values)
    check_weights(state, shapes_of(model), prefix)
    return model.eval()


def index_path(prefix: Path) -> Path:
    """The file that says what a checkpoint holds."""
    return prefix.with_name(prefix.name + ".index")


def read_index(prefix: Path, path: Path | None = None) -> Index:
    """The variables of a checkpoint. Raises UsageError when there is no index, DamagedFile when it is damaged.

    path : the index, where it does not lie under its own name yet
    """
    path = path or index_path(prefix)
    try:
        content = read_whole(path, most=_LARGEST_INDEX)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: give the checkpoint's path without .index, such as model.ckpt-1000000") from None
    except (OSError, ValueError) as error:
        raise DamagedFile(path, cannot_read(path, error)) from None
    try:
        entries = dict(_table(content))
        header = dict(_fields(entries.pop(b"")))
        if header.get(2, 0) != 0:
            raise _Damaged("its numbers are big-endian")
        index = Index(prefix, _whole(header.get(1, 0)))
        for name, entry in entries.items():
            index.variables[name.decode()] = _variable(entry, index.shards)
    except (_Damaged, KeyError, UnicodeDecodeError) as error:
        raise DamagedFile(path, cannot_read(path, error)) from None
    return index


def shape_of(index: Index) -> ModelShape:
    """What the variables' names and shapes say of the model. Raises UsageError for those of no Image GPT."""
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
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{index.prefix} is not a checkpoint of Image GPT ({error}): give one of the released ones") from None


class _Place(NamedTuple):
    """Our parameter, its rows, whether the matrix lies the other way round, and the variable's shape."""

    parameter: str
    rows: slice | None
    transposed: bool
    shape: tuple[int, ...]


def _places(shape: ModelShape) -> dict[str, _Place]:
    """Where each variable goes. q, k and v are stored (head, out, in) as ours; the other matrices (in, out)."""
    width, heads = shape.n_embd, (shape.n_head, shape.n_embd // shape.n_head, shape.n_embd)
    rows = {"wte": shape.n_vocab, "wpe": shape.n_ctx, "wtet": shape.n_vocab}
    places = {f"model/{name}": _Place(name, None, False, (number, width)) for name, number in rows.items()}
    places["model/ln_f/g"] = _Place("ln_f.g", None, False, (width,))
    if shape.objective == "autoregressive":
        places["model/sos"] = _Place("sos", None, False, (width,))
    for layer in range(shape.n_layer):
        ours, theirs = f"blocks.{layer}", f"model/h{layer}"
        for norm in ("ln_1", "ln_2"):
            places[f"{theirs}/{norm}/g"] = _Place(f"{ours}.{norm}.g", None, False, (width,))
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part_rows = slice(part * width, (part + 1) * width)
            places[f"{theirs}/attn/{name}"] = _Place(f"{ours}.attn.qkv.weight", part_rows, False, heads)
        places[f"{theirs}/attn/c_proj"] = _Place(f"{ours}.attn.c_proj.weight", None, True, heads)
        places[f"{theirs}/mlp/c_fc/w"] = _Place(f"{ours}.c_fc.weight", None, True, (width, 4 * width))
        places[f"{theirs}/mlp/c_proj/w"] = _Place(f"{ours}.c_proj.weight", None, True, (4 * width, width))
    return places


def _check_names(index: Index, places: dict[str, _Place]) -> None:
    """Refuse a checkpoint that lacks a variable, has one too many, or one of another shape or type."""
    found = index.variables
    trained = re.compile(r"model/(?!clf/).*(?<!/Adam)(?<!/Adam_1)")
    wrong = [f"{name} is missing" for name in places if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in places and trained.fullmatch(name)]
    for name, place in places.items():
        if name in found:
            variable = found[name]
            if variable.shape != place.shape or variable.dtype != _FLOAT32 or variable.size != 4 * math.prod(place.shape):
                wrong.append(f"{name} has shape {variable.shape} and type {variable.dtype}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(f"{index.prefix} is not a checkpoint of Image GPT: {'; '.join(wrong[:3])}{more}")


def needed_shards(index: Index) -> list[int]:
    """The shards in which the weights lie; others hold an optimiser's variables only."""
    return sorted({index.variables[name].shard for name in _places(shape_of(index)) if name in index.variables})


def shard_fault(index: Index, number: int, path: Path) -> str:
    """What is wrong with a shard by the checksums of its weights, or nothing; ``path`` is where it lies."""
    for name in _places(shape_of(index)):
        variable = index.variables.get(name)
        if variable is not None and variable.shard == number and _content(variable, path) is None:
            return f"does not have the checksum of {name}"
    return ""


def _check_shards(index: Index, needed: set[int]) -> None:
    """Refuse, before anything is read, shards that are missing or shorter than the index says."""
    missing = [index.shard(number).name for number in sorted(needed) if not index.shard(number).exists()]
    if missing:
        raise UsageError(f"{index.prefix} lacks {len(missing)} of its {index.shards} shards, {missing[0]} first: copy them too")
    for number in sorted(needed):
        path = index.shard(number)
        held = [v for v in index.variables.values() if v.shard == number]
        needed_size = max(max(v.offset + v.size for v in held), sum(v.size for v in held))  # none lies within another
        try:
            if (size := file_size(path)) < needed_size:
                raise ValueError(f"it is cut short at {size:,} of {needed_size:,} bytes")
        except (OSError, ValueError) as error:
            raise DamagedFile(path, cannot_read(path, error)) from None


def _read(index: Index, name: str) -> NDArray[np.float32]:
    """A variable's numbers in their own shape, checked against its checksum."""
    variable = index.variables[name]
    path = index.shard(variable.shard)
    if (content := _content(variable, path)) is None:
        raise DamagedFile(path, UsageError(f"{path} is damaged ({name} does not have its checksum): copy it again"))
    return np.frombuffer(content, "<f4").reshape(variable.shape)


def _content(variable: Variable, path: Path) -> bytearray | None:
    """A variable's bytes out of its shard; None where they do not have its checksum."""
    with path.open("rb") as stream:
        stream.seek(variable.offset)
        content = bytearray(stream.read(variable.size))
    return content if len(content) == variable.size and _masked(content) == variable.crc else None


def _masked(content: bytes | bytearray) -> int:
    """LevelDB's CRC-32C, rotated and shifted so that a checksum of a checksum is not trivial."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in order."""
    if len(content) < 48 or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise _Damaged("it does not end as an index does")
    footer = content[-48:]
    _, at = _handle(footer, 0)  # of the table's meta data, which is empty
    handle, _ = _handle(footer, at)
    last = None
    for _, value in _block(content, handle):
        inner, _ = _handle(value, 0)
        for key, entry in _block(content, inner):
            if last is not None and key <= last:  # so that no block is read again and again
                raise _Damaged("its names are not in order")
            last = key
            yield key, entry


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; each key is written as what it adds to the one before."""
    offset, size = handle
    block = content[offset : offset + size]
    tail = content[offset + size : offset + size + 5]
    if len(block) != size or len(tail) != 5:
        raise _Damaged("it is cut short")
    if struct.unpack("<I", tail[1:])[0] != _masked(block + tail[:1]):
        raise _Damaged("a block does not have its checksum")
    if tail[0] != 0 or size < 4:
        raise _Damaged("a block is compressed")
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared + added > _LONGEST_NAME:
            raise _Damaged("a name is too long")
        if shared > len(key) or at + added + length > end:
            raise _Damaged("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where they end."""
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise _Damaged("a number does not end")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise _Damaged("an entry cannot be read")
        part = message[at : at + size]
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")
        at += size


def _variable(entry: bytes, shards: int) -> Variable:
    """A variable from its BundleEntryProto."""
    found: dict[int, int | bytes] = dict(_fields(entry))
    sizes = []
    for number, dimension in _fields(_text(found.get(2, b""))):
        if number == 2:
            sizes.append(_whole(dict(_fields(_text(dimension))).get(1, 0)))
    if 7 in found:
        raise _Damaged("it holds variables in slices, which the released checkpoints do not")
    shard = _whole(found.get(3, 0))
    if shard >= shards:
        raise _Damaged(f"it names shard {shard} of {shards}")
    return Variable(_whole(found.get(1, 0)), tuple(sizes), shard, *(_whole(found.get(n, 0)) for n in (4, 5, 6)))


def _whole(value: int | bytes) -> int:
    """A field that must be a number."""
    if isinstance(value, bytes):
        raise _Damaged("an entry cannot be read")
    return value


def _text(value: int | bytes) -> bytes:
    """A field that must be bytes."""
    if isinstance(value, int):
        raise _Damaged("an entry cannot be read")
    return value
