"""Faster linear layers and causal attention on a CPU, and torch.compile with a fallback.

torch's float32 `F.linear` is slow on many processors, above all for few rows, as in sampling (measured by `igpt bench`).
oneDNN, which is part of torch, is faster on weights in its own layout. That layout is a second copy of the weights, made
only inside a ``with prepacked(model)`` block. Outside of such a block, and without oneDNN, layers use `F.linear`.

torch's fused attention is slow in bfloat16 on a CPU, above all for short sequences. There `causal_attention` computes
blocks of queries, each with the keys up to the block's end, by matrix products that skip most masked scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.progress import tell

GELU = 1.702  # x * sigmoid(1.702 x), the released code's gelu2
# oneDNN is not faster for narrower layers, such as the tiny tier's (measured on two cores).
LEAST_INPUTS = 256
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")  # private to torch; a later version may remove them
LONGEST_BLOCK = 256  # queries; at least two blocks per sequence (128 to 256 were fastest at 256 and 1,024 positions)


class Linear(nn.Linear):
    """``x W^T``, plus b with ``bias``, followed by x * sigmoid(1.702 x) with ``gelu``."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, gelu: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.gelu = gelu
        # Set inside `prepacked` only; they hold 1.702 W and 1.702 b if a gelu follows.
        self.prepacked: Tensor | None = None
        self.prepacked_bias: Tensor | None = None

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Map x (..., inputs) to (..., outputs), and add ``add`` of that shape."""
        if self.prepacked is None:
            y = F.linear(x, self.weight, self.bias)
            if self.gelu:
                y = y * torch.sigmoid(GELU * y)
            return y if add is None else add + y
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.prepacked, self.prepacked_bias, "add")  # type: ignore[no-any-return]
        packed = self.prepacked, self.prepacked_bias
        if self.gelu:  # swish(1.702 x) / 1.702, with the swish fused into the product
            return torch.ops.mkldnn._linear_pointwise(x, *packed, "swish", [], "").mul_(1 / GELU)  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise(x, *packed, "none", [], "")  # type: ignore[no-any-return]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where position i sees 0 .. i; all (B, H, T, D)."""
    positions = q.shape[2]
    block = min(LONGEST_BLOCK, positions // 2)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or block < 64 or positions % block:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.full((block, block), -torch.inf, dtype=q.dtype).triu(1)
    q = q * q.shape[3] ** -0.5
    outputs = []
    for end in range(block, positions + 1, block):
        scores = q[:, :, end - block : end] @ k[:, :, :end].transpose(2, 3)  # (B, H, block, end)
        scores = torch.cat([scores[..., : end - block], scores[..., end - block :] + mask], dim=3)
        outputs.append(scores.softmax(3) @ v[:, :, :end])
    return torch.cat(outputs, dim=2)


LONGEST = 300  # characters of a compiler's output in a message
UNCOMPILED = "igpt: the model cannot be compiled and runs uncompiled, more slowly"
_noted: list[str] = []  # the line that this process has printed, if any


def compile_module(module: nn.Module) -> None:
    """Compile a module's calls; if that fails, the module runs uncompiled from then on, and one line is printed on stderr.

    When a compiled call raises an error, the uncompiled call runs, so that only errors of the compiler are caught.
    """
    try:
        from torch._functorch import config

        # Otherwise the backward pass is compiled in the middle of `backward`, where there is no uncompiled call to fall back on.
        if hasattr(config, "force_non_lazy_backward_lowering"):  # since torch 2.5 or so
            config.force_non_lazy_backward_lowering = True
        compiled = torch.compile(module._call_impl)
    except Exception as error:  # a Python version that torch does not compile for yet
        note_uncompiled(f"{UNCOMPILED}: {_reason(error)}")
        return

    def call(*args: object, **kwargs: object) -> object:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            reason = _reason(error)  # not the error, whose traceback keeps all tensors of the call alive
        result = module._call_impl(*args, **kwargs)
        module._compiled_call_impl = None
        note_uncompiled(f"{UNCOMPILED}: {reason}")
        return result

    module._compiled_call_impl = call


def note_uncompiled(output: str) -> None:
    """Print the line of ``output`` that starts with `UNCOMPILED`, if there is one, the first time in this process."""
    line = next((line for line in output.splitlines() if line.startswith(UNCOMPILED)), "")
    if line and not _noted:
        _noted.append(line)
        tell(line)


def uncompiled() -> str:
    """The line that `note_uncompiled` has printed in this process; empty if compilation never failed."""
    return "".join(_noted)


def _reason(error: Exception) -> str:
    """The line of a compiler's output with the error's message, shortened, with advice for a missing compiler."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if " error: " in f" {line}"), lines[0])
    advice = "; install g++ and Python's headers (Debian: g++ and python3-dev)" if "C++" in str(error) else ""
    return "".join(c for c in line[:LONGEST] if c.isprintable()) + advice


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Context manager, without gradients, in which the model's linear layers use oneDNN's weight layout.

    On a CPU, in float32 or bfloat16, this doubles the weights' memory and takes about as long as reading them;
    elsewhere it does nothing. The weights must not change inside the block.

    >>> from igpt.model import ImageGPT
    >>> from igpt.sample import sample
    >>> from igpt.shape import ModelShape
    >>> model = ImageGPT(ModelShape(n_layer=2, n_embd=16, n_head=2, n_vocab=8, n_ctx=9))
    >>> with prepacked(model):
    ...     tokens = sample(model, n=2, seed=0)
    """
    layers = [m for m in model.modules() if isinstance(m, Linear) and m.prepacked is None and _gains(m.weight)]
    with torch.no_grad():
        try:
            for layer in layers:
                weight = layer.weight * GELU if layer.gelu else layer.weight
                if layer.bias is not None:  # a plain tensor: a module would register a parameter under this name too
                    layer.prepacked_bias = layer.bias * GELU if layer.gelu else layer.bias.detach()
                layer.prepacked = torch.ops.mkldnn._reorder_linear_weight(weight)
            yield
        finally:
            for layer in layers:
                layer.prepacked = layer.prepacked_bias = None


def _gains(weight: Tensor) -> bool:
    """Whether products with this weight are expected to be faster in oneDNN's layout."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.shape[1] >= LEAST_INPUTS
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
