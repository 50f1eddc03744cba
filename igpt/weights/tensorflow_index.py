"""The index of a TensorFlow checkpoint (``PREFIX.index``), read without TensorFlow and without torch.

The index is a sorted LevelDB table that maps each variable's name to a protocol buffer with its shape, its shard, and its
offset, size and checksum there. Variables named ``model/...`` are weights; an optimiser's and a class head's are not read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from igpt.errors import UsageError
from igpt.files import cannot_read, read_whole

FLOAT32 = 1  # DT_FLOAT
_MAGIC = 0xDB4775248B80FB57  # the last eight bytes of a LevelDB table
_LARGEST_INDEX = 1 << 18  # bytes; iGPT-L's has some 20,000, and three times as many with an optimiser
_LONGEST_NAME = 256  # bytes; released names have fewer than 50
_WEIGHT = re.compile(r"model/(?!clf/).*(?<!/Adam)(?<!/Adam_1)")  # as restored by the released code

Fields = dict[int, list[int | bytes]]  # values of a protocol buffer, by field number


@dataclass(frozen=True)
class Variable:
    """A variable's dtype and shape, and its bytes within a shard; ``crc`` is LevelDB's masked CRC-32C."""

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
    variables: dict[str, Variable]

    @property
    def weights(self) -> dict[str, Variable]:
        """The variables that are a model's weights."""
        return {name: variable for name, variable in self.variables.items() if _WEIGHT.fullmatch(name)}

    @property
    def weight_shards(self) -> dict[int, Path]:
        """The files of the shards that hold weights, by number, in order."""
        return {number: self.shard(number) for number in sorted({variable.shard for variable in self.weights.values()})}

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")


def index_path(prefix: Path) -> Path:
    """The index file of a checkpoint."""
    return prefix.with_name(prefix.name + ".index")


def read_index(prefix: Path, path: Path | None = None) -> Index:
    """The variables of a checkpoint. Raises UsageError for an index that is missing or damaged.

    path : the index file, if it does not have its final name yet
    """
    path = path or index_path(prefix)
    try:
        entries = dict(_table(read_whole(path, most=_LARGEST_INDEX)))
        header = _fields(entries.pop(b"", b""))
        if _number(header, 2):
            raise ValueError("its numbers are big-endian")
        shards = _number(header, 1)
        return Index(prefix, shards, {name.decode(): _variable(entry, shards) for name, entry in entries.items()})
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: give the checkpoint's path without .index, such as model.ckpt-1000000") from None
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from None


def masked_crc(content: bytes | bytearray) -> int:
    """LevelDB's CRC-32C, rotated and shifted so that a checksum of a checksum is not trivial."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in order."""
    if len(content) < 48 or struct.unpack("<Q", content[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as an index does")
    footer = content[-48:]
    _, at = _handle(footer, 0)  # the handle of the meta index, which is empty
    handle, _ = _handle(footer, at)
    previous = None
    for _, value in _block(content, handle):
        inner, _ = _handle(value, 0)
        for key, entry in _block(content, inner):
            if previous is not None and key <= previous:  # so that no block is read twice
                raise ValueError("its names are not in order")
            previous = key
            yield key, entry


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; each key is stored as the prefix shared with the previous key, and the rest."""
    offset, size = handle
    block = content[offset : offset + size]
    tail = content[offset + size : offset + size + 5]  # a byte for the compression, and a checksum
    if len(block) != size or len(tail) != 5:
        raise ValueError("it is cut short")
    if struct.unpack("<I", tail[1:])[0] != masked_crc(block + tail[:1]):
        raise ValueError("a block does not have its checksum")
    if tail[0] != 0 or size < 4:
        raise ValueError("a block is compressed")
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared + added > _LONGEST_NAME:
            raise ValueError("a name is too long")
        if shared > len(key) or at + added + length > end:
            raise ValueError("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's handle, which is its offset and size, and the position after it."""
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A varint (groups of seven bits), and the position after it."""
    value = 0
    for shift, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("a number does not end")


def _variable(entry: bytes, shards: int) -> Variable:
    """A variable from its BundleEntryProto."""
    fields = _fields(entry)
    shape = tuple(_number(dimension, 1) for message in _messages(fields, 2) for dimension in _messages(message, 2))
    if 7 in fields:
        raise ValueError("it holds variables in slices, which the released checkpoints do not")
    if (shard := _number(fields, 3)) >= shards:
        raise ValueError(f"it names shard {shard} of {shards}")
    return Variable(_number(fields, 1), shape, shard, *(_number(fields, number) for number in (4, 5, 6)))


def _fields(message: bytes) -> Fields:
    """The values of a protocol buffer, by the fields' numbers."""
    fields: Fields = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind in (0, 2):
            value, at = _varint(message, at)
        if kind != 0:
            size = value if kind == 2 else {1: 8, 5: 4}.get(kind, len(message) + 1)
            if at + size > len(message):
                raise ValueError("an entry cannot be read")
            part = message[at : at + size]
            at += size
        fields.setdefault(tag >> 3, []).append(value if kind == 0 else part if kind == 2 else int.from_bytes(part, "little"))
    return fields


def _number(fields: Fields, number: int) -> int:
    """The value of a numeric field, 0 by default."""
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise ValueError("an entry cannot be read")
    return value


def _messages(fields: Fields, number: int) -> list[Fields]:
    """The values of a field of nested messages, none by default."""
    messages = []
    for value in fields.get(number, []):
        if isinstance(value, int):
            raise ValueError("an entry cannot be read")
        messages.append(_fields(value))
    return messages
