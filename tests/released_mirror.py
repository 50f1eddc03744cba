"""OpenAI's and Hugging Face's servers on this machine: weights and tokens in the released formats, of shapes that tests choose.

The writer of checkpoints is the counterpart of `igpt.weights.tensorflow`, and shares no code with it.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from crc32c import crc32c
from numpy.typing import NDArray
from safetensors.torch import load_file

from igpt.model import ImageGPT
from igpt.shape import ModelShape
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import released_palette

STEPS = (131_000, 262_000, 524_000, 1_000_000)
SPLITS = ("train", "validation", "test")  # which the files' names begin with the first two letters of

Variables = dict[str, NDArray[np.float32]]


# A checkpoint


def trained_model(shape: ModelShape, seed: int) -> ImageGPT:
    """A model in evaluation mode as if trained: its output matrix and its norms are not where they begin."""
    model = ImageGPT(shape, seed=seed % 2**32).eval()
    numbers = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        model.wtet.normal_(0, 0.1, generator=numbers)
        for name, parameter in model.named_parameters():
            if name.endswith(".g"):
                parameter.add_(torch.randn(parameter.shape, generator=numbers), alpha=0.1)
    return model


def variables_of(model: ImageGPT) -> Variables:
    """A model's weights by the released names, in the released layout (`src/model.py` of openai/image-gpt)."""
    shape, ours = model.shape, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads = (shape.n_head, shape.n_embd // shape.n_head, shape.n_embd)  # of the input for c_proj, else of the output
    found = {"wpe": ours["wpe"], "wte": ours["wte"], "wtet": ours["wtet"], "ln_f/g": ours["ln_f.g"]}
    if shape.objective == "autoregressive":
        found["sos"] = ours["sos"]
    for layer in range(shape.n_layer):
        block = {name.removeprefix(f"blocks.{layer}."): values for name, values in ours.items() if f"blocks.{layer}." in name}
        parts = {f"attn/{name}_proj": part for name, part in zip("qkv", np.split(block["attn.qkv.weight"], 3), strict=True)}
        parts |= {"attn/c_proj": block["attn.c_proj.weight"].T}
        parts = {name: np.reshape(part, heads) for name, part in parts.items()}
        parts |= {"ln_1/g": block["ln_1.g"], "ln_2/g": block["ln_2.g"]}
        parts |= {"mlp/c_fc/w": block["c_fc.weight"].T, "mlp/c_proj/w": block["c_proj.weight"].T}
        found |= {f"h{layer}/{name}": part for name, part in parts.items()}
    return {f"model/{name}": np.ascontiguousarray(values, "<f4") for name, values in found.items()}


def write_checkpoint(
    folder: Path, step: int, variables: Variables, *, shards: int, shard_of: Mapping[str, int] | None = None
) -> Path:
    """Write a checkpoint as TensorFlow's sharded saver does; its prefix.

    shard_of : the shard of each variable; in turn, in the order of the names, when None
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"model.ckpt-{step}"
    names = sorted(variables)
    shard_of = shard_of or {name: place % shards for place, name in enumerate(names)}
    entries = [(b"", _number(1, shards) + _bytes(3, _number(1, 1)))]  # how many shards; the version of the format
    sizes = [0] * shards
    contents: list[list[bytes]] = [[] for _ in range(shards)]
    for name in names:
        shard, content = shard_of[name], variables[name].astype("<f4").tobytes()
        dimensions = b"".join(_bytes(2, _number(1, size)) for size in variables[name].shape)
        where = _number(3, shard) + _number(4, sizes[shard]) + _number(5, len(content))
        checksum = b"\x35" + struct.pack("<I", _masked(content))
        entries.append((name.encode(), _number(1, 1) + _bytes(2, dimensions) + where + checksum))
        contents[shard].append(content)
        sizes[shard] += len(content)
    for shard, parts in enumerate(contents):
        (folder / f"{stem}.data-{shard:05d}-of-{shards:05d}").write_bytes(b"".join(parts))
    (folder / f"{stem}.index").write_bytes(_table(entries))
    (folder / f"{stem}.meta").write_bytes(b"the graph, which nothing here reads")
    return folder / stem


def _table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB table of one block of data, as TensorFlow writes it: blocks of up to 256 KiB, nothing compressed."""
    data = _block(entries, restart_every=16)
    assert len(data) < 1 << 18
    beyond = bytes([entries[-1][0][0] + 1])  # the shortest key behind the last
    meta = _block([], restart_every=16)
    places = [_varint(0) + _varint(len(data) - 5), _varint(len(data)) + _varint(len(meta) - 5)]
    index = _block([(beyond, places[0])], restart_every=1)
    footer = places[1] + _varint(len(data) + len(meta)) + _varint(len(index) - 5)
    return data + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: list[tuple[bytes, bytes]], *, restart_every: int) -> bytes:
    """A block with its trailer; each key is what it adds to the one before, but for every so many."""
    body, restarts, before = b"", [0], b""
    for place, (key, value) in enumerate(entries):
        shared = 0
        if place % restart_every:
            shared = next((n for n, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before)))
        elif place:
            restarts.append(len(body))
        body += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    body += b"".join(struct.pack("<I", at) for at in (*restarts, len(restarts))) + b"\0"
    return body + struct.pack("<I", _masked(body))


def _masked(content: bytes) -> int:
    """LevelDB's CRC-32C: rotated to the right by 15 bits, plus a constant."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def _varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    groups = b""
    while value > 127:
        groups += bytes([value & 127 | 128])
        value >>= 7
    return groups + bytes([value])


def _number(tag: int, value: int) -> bytes:
    """A number as a field of a protocol buffer, which leaves zero out."""
    return _varint(tag << 3) + _varint(value) if value else b""


def _bytes(tag: int, content: bytes) -> bytes:
    """A message or string as a field of a protocol buffer."""
    return _varint(tag << 3 | 2) + _varint(len(content)) + content


# What the servers hold


def release_tokens(folder: Path, dataset: str, tokens: Mapping[str, NDArray[np.integer]], *, classes: int) -> None:
    """Token files ``datasets/{dataset}_trX.npy`` ...; labels in turn, one-hot float32 as the released graph takes them.

    tokens : (images, positions) by split
    """
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    for split, rows in tokens.items():
        np.save(folder / "datasets" / f"{dataset}_{split[:2]}X.npy", rows)
        labels = np.eye(classes, dtype=np.float32)[np.arange(len(rows)) % classes]
        np.save(folder / "datasets" / f"{dataset}_{split[:2]}Y.npy", labels)


def random_tokens(
    counts: tuple[int, int, int], *, positions: int, colours: int = 512, seed: int = 0
) -> dict[str, NDArray[np.integer]]:
    """Tokens int64 (images, positions) of the three splits."""
    draw = np.random.default_rng(seed)
    return {split: draw.integers(0, colours, (count, positions)) for split, count in zip(SPLITS, counts, strict=True)}


def release_hub(folder: Path, size: str, model: ImageGPT, *, pickled: bool = False) -> Path:
    """Hugging Face's files of ``openai/imagegpt-{size}``, with ``pytorch_model.bin`` as the only weights when ``pickled``."""
    main = folder / "openai" / f"imagegpt-{size}" / "resolve" / "main"
    main.mkdir(parents=True)
    write_huggingface(main, model, released_palette() if model.shape.n_vocab == 512 else None)
    if pickled:
        torch.save(load_file(main / "model.safetensors"), main / "pytorch_model.bin")
        (main / "model.safetensors").unlink()
    return main


# The server


@dataclass(frozen=True)
class Fault:
    """What happens to one request: the body ends after ``cut`` bytes of the whole file, another file comes, or a status."""

    cut: int | None = None
    content: bytes | None = None
    status: int = 200


@dataclass
class Mirror:
    """A server of a folder, with ranges. ``faults`` are by path, in the order of the requests; what was asked is kept."""

    folder: Path
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, and range
    address: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request for a file."""
        path, wanted = request.path.lstrip("/"), request.headers.get("Range")
        self.asked.append((path, wanted))
        waiting = self.faults.get(path, [])
        fault = waiting.pop(0) if waiting else Fault()
        file = self.folder / path
        if fault.status != 200 or not file.is_file():
            return request.send_error(fault.status if fault.status != 200 else 404)
        content = file.read_bytes() if fault.content is None else fault.content
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        first = int(found[1]) if found and request.headers.get("If-Range") == tag else 0
        body = content[first : fault.cut]
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(content) - first))
        request.end_headers()
        request.wfile.write(body)


class _Handler(BaseHTTPRequestHandler):
    """Has the mirror answer."""

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.close_connection = True
        try:
            self.server.mirror.answer(self)
        except ConnectionError:
            pass  # who asked has gone

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """The server of one mirror."""

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mirror = mirror


@contextmanager
def serving(folder: Path) -> Iterator[Mirror]:
    """A folder on a server of this machine, which goes with the block. (NO_PROXY must have 127.0.0.1.)"""
    mirror = Mirror(folder)
    with _Server(mirror) as server:
        mirror.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield mirror
        finally:
            server.shutdown()
