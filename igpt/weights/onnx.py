"""Export to ONNX: the model as a graph with its keys and values as inputs and outputs, for runtimes without torch.

One graph computes both the prefix and each later step, so that a runtime loads the weights once:

    tokens                       int64 (B, S)             the start token (``n_vocab``) and the prefix first, then one at a time
    past.0.key .. past.L-1.value  float32 (B, H, P, D)     of all positions so far, P = 0 at first
    logits                       float32 (B, V)           of the position after the last given token
    present.0.key ..             float32 (B, H, P + S, D)  the past and the new ones: the next call's past

Letters as in `igpt.model`; L is the number of blocks. On a GPU, a runtime can keep the cache in the GPU's memory.
Only operators of ONNX's opset 17 are used, so that any runtime since 2022 reads the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from igpt.errors import UsageError
from igpt.fast import GELU, Linear
from igpt.files import write_atomically, write_text
from igpt.model import Block, ImageGPT
from igpt.palette import Palette
from igpt.weights.check import check_model

OPSET = 17
WEIGHTS = "weights.bin"  # beside model.onnx: a protocol buffer is limited to 2 GB, and iGPT-L is larger
ALIGNED = 64  # bytes; each tensor begins at a multiple


def write_onnx(folder: Path, model: ImageGPT, palette: Palette, *, half: bool = False) -> None:
    """Write a model as ``model.onnx``, ``weights.bin`` and ``palette.npy``; ``config.json`` is written last.

    half : store weights in float16. A runtime still computes in float32, with weights that have a relative error of at most
    2^-11: on a trained tiny-l, logits then differ by less than 0.02, and by less than 1e-3 with float32

    Raises UsageError for a BERT model, which has no next token, and for weights that are not finite or that float16
    cannot hold.
    """
    shape = model.shape
    if shape.objective != "autoregressive":
        raise UsageError("BERT weights predict no next token and cannot be exported as a sampler: use autoregressive ones")
    check_model(model, folder)
    with write_atomically(folder / WEIGHTS) as stream, torch.no_grad():
        content = _Graph(stream, half=half).build(model).SerializeToString()
    with write_atomically(folder / "model.onnx") as stream:
        stream.write(content)
    palette.save(folder / "palette.npy")
    config = {**shape.as_dict(), "palette_sha256": palette.digest, "weights": "float16" if half else "float32"}
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


class _Graph:
    """A graph under construction: nodes in the order of computation; weights are written to ``stream`` in that order."""

    def __init__(self, stream: IO[bytes], *, half: bool) -> None:
        self.stream = stream
        self.dtype = torch.float16 if half else torch.float32
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def build(self, model: ImageGPT) -> onnx.ModelProto:
        """The graph of the whole model."""
        shape = model.shape
        depth = shape.n_embd // shape.n_head
        past = self.node("Squeeze", self.node("Shape", "past.0.key", start=2, end=3), self.constant([0]))
        new = self.node("Squeeze", self.node("Shape", "tokens", start=1, end=2), self.constant([0]))
        # All positions so far, and the new ones: a query sees no later key.
        total = self.node("Add", past, new)
        positions = self.node("Range", past, total, self.constant(1))  # (S,)
        key_positions = self.node("Range", self.constant(0), total, self.constant(1))  # (P + S,)
        later = self.node("Greater", key_positions, self.node("Unsqueeze", positions, self.constant([1])))  # (S, P + S)
        mask = self.node("Where", later, self.constant(-3e38), self.constant(0.0))

        h = self.node("Gather", self.weight("wte", torch.cat([model.wte, model.sos[None]])), "tokens")  # (B, S, C)
        h = self.node("Add", h, self.node("Gather", self.weight("wpe", model.wpe), positions))
        for number, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            h = self.block(h, block, number, mask)
        newest = self.node("Gather", self.norm(h, self.weight("ln_f.g", model.ln_f.g)), self.constant(-1), axis=1)  # (B, C)
        self.node("MatMul", newest, self.weight("wtet", model.wtet.T), out="logits")

        def cache(name: str, length: str) -> list[onnx.ValueInfoProto]:
            dims = ("images", shape.n_head, length, depth)
            names = [f"{name}.{number}.{part}" for number in range(shape.n_layer) for part in ("key", "value")]
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n in names]

        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ("images", "given"))
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("images", shape.n_vocab))
        inputs, outputs = [tokens, *cache("past", "past")], [logits, *cache("present", "present")]
        graph = helper.make_graph(self.nodes, "igpt", inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="igpt")

    def block(self, h: str, block: Block, number: int, mask: str) -> str:
        """The block's output (B, S, C); its keys and values become outputs of the graph."""

        def weight(name: str, tensor: Tensor) -> str:
            return self.weight(f"blocks.{number}.{name}", tensor)

        def product(name: str, x: str, layer: Linear) -> str:
            y = self.node("MatMul", x, weight(name, layer.weight.T))
            return y if layer.bias is None else self.node("Add", y, weight(f"{name}.bias", layer.bias))

        heads, width = block.attn.n_head, len(block.ln_1.g)
        depth = width // heads
        normed = self.norm(h, weight("ln_1.g", block.ln_1.g))
        qkv = product("qkv", normed, block.attn.qkv)
        qkv = self.node("Reshape", qkv, self.constant([0, 0, 3, heads, depth]))  # (B, S, 3, H, D)
        query, key, value = (self.node("Gather", qkv, self.constant(part), axis=2) for part in range(3))
        # The query is scaled, since it is smaller than the scores.
        query = self.node("Mul", query, self.constant(depth**-0.5))
        query, key, value = (self.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, key, value))  # (B, H, S, D)
        keys = self.node("Concat", f"past.{number}.key", key, axis=2, out=f"present.{number}.key")  # (B, H, P + S, D)
        values = self.node("Concat", f"past.{number}.value", value, axis=2, out=f"present.{number}.value")
        scores = self.node("MatMul", query, self.node("Transpose", keys, perm=[0, 1, 3, 2]))  # (B, H, S, P + S)
        attention = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        context = self.node("MatMul", attention, values)  # (B, H, S, D)
        context = self.node("Reshape", self.node("Transpose", context, perm=[0, 2, 1, 3]), self.constant([0, 0, width]))
        h = self.node("Add", h, product("attn.c_proj", context, block.attn.c_proj))
        inner = product("c_fc", self.norm(h, weight("ln_2.g", block.ln_2.g)), block.c_fc)
        gate = self.node("Sigmoid", self.node("Mul", inner, self.constant(GELU)))
        return self.node("Add", h, product("c_proj", self.node("Mul", inner, gate), block.c_proj))

    def norm(self, h: str, gain: str) -> str:
        """As `igpt.model.Norm`, in the five operators that runtimes fuse."""
        mean = self.node("ReduceMean", self.node("Pow", h, self.constant(2.0)), axes=[-1], keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.constant(1e-5)))
        return self.node("Mul", self.node("Div", h, root), gain)

    def node(self, operator: str, *inputs: str, out: str = "", **attributes: int | list[int]) -> str:
        """Add a node, and return the name of its output."""
        out = out or f"{operator.lower()}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [out], **attributes))  # type: ignore[arg-type]  # of its own keywords
        return out

    def constant(self, value: float | list[int]) -> str:
        """Add a constant, float32 for a float and int64 otherwise, and return its name."""
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        self.initializers.append(numpy_helper.from_array(array, f"constant.{len(self.initializers)}"))
        return self.initializers[-1].name

    def weight(self, name: str, tensor: Tensor) -> str:
        """Write a weight, and return the name of its float32 value."""
        stored = tensor.to(self.dtype).contiguous()
        if not stored.isfinite().all():
            raise UsageError(f"the weight {name} is beyond float16's range: export without --half")
        self.stream.write(b"\0" * (-self.stream.tell() % ALIGNED))
        proto = TensorProto(
            name=name,
            data_type=TensorProto.FLOAT16 if self.dtype == torch.float16 else TensorProto.FLOAT,
            dims=list(stored.shape),
            data_location=TensorProto.EXTERNAL,
        )
        content = stored.numpy().tobytes()  # little-endian wherever torch runs
        for key, value in (("location", WEIGHTS), ("offset", self.stream.tell()), ("length", len(content))):
            proto.external_data.add(key=key, value=str(value))
        self.stream.write(content)
        self.initializers.append(proto)
        if self.dtype == torch.float16:
            return self.node("Cast", name, to=TensorProto.FLOAT)
        return name
