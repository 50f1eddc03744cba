"""Products of activations with weights, and causal attention, as fast as this machine's processor has them.

torch's float32 `F.linear` leaves some of many processors' rate unused, and reads weights in an order that
costs most when few rows meet them, as in sampling (`igpt bench` measures both). oneDNN, which stands in the same
wheel, is faster on weights that it has laid out for itself. That layout is another copy of the weights, so it is made
for a block of work and dropped after it; without it, and where oneDNN or its operators are missing, every product is
plain `F.linear`.

torch's fused attention is slow in bfloat16 on a CPU, above all on short sequences. There the queries go in blocks, each
against the keys up to its own end, as plain products that leave out most of what a causal mask hides.

torch.compile makes a training step faster where there is a compiler that works, which only trying shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igpt.progress import tell

GELU = 1.702  # x * sigmoid(1.702 x), the released code's gelu2
# Below this, a product is over before oneDNN has begun (measured on two cores; the tiny tier lies below).
LEAST_INPUTS = 256
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")  # torch's own, which a later version may take away
LONGEST_BLOCK = 256  # queries; a sequence goes in two blocks at least (128 to 256 were fastest at 256 and at 1,024)


class Linear(nn.Linear):
    """``x W^T``, without bias; with ``gelu``, x * sigmoid(1.702 x) of it."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.gelu = gelu
        self.prepacked: Tensor | None = None  # inside `prepacked` only; of 1.702 W when a gelu follows

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Of x (..., inputs): (..., outputs), and ``add`` of that shape on top."""
        if self.prepacked is None:
            y = F.linear(x, self.weight)
            if self.gelu:
                y = y * torch.sigmoid(GELU * y)
            return y if add is None else add + y
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.prepacked, None, "add")  # type: ignore[no-any-return]
        if self.gelu:  # swish(1.702 x) / 1.702, and oneDNN puts the swish into the product
            return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, None, "swish", [], "").mul_(1 / GELU)  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, None, "none", [], "")  # type: ignore[no-any-return]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, where position i sees 0 .. i; all (B, H, T, D)."""
    positions = q.shape[2]
    block = min(LONGEST_BLOCK, positions // 2)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or block < 64 or positions % block:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    later = torch.full((block, block), -torch.inf, dtype=q.dtype).triu(1)
    q = q * q.shape[3] ** -0.5
    parts = []
    for end in range(block, positions + 1, block):
        scores = q[:, :, end - block : end] @ k[:, :, :end].transpose(2, 3)  # (B, H, block, end)
        scores = torch.cat([scores[..., : end - block], scores[..., end - block :] + later], dim=3)
        parts.append(scores.softmax(3) @ v[:, :, :end])
    return torch.cat(parts, dim=2)


LONGEST = 300  # characters of a compiler's output that are worth a look
UNCOMPILED = "igpt: the model cannot be compiled and runs uncompiled, more slowly"
_why: list[str] = []  # the line with which this process has said so


def compile_module(module: nn.Module) -> None:
    """Have a module's calls compiled; one that cannot be runs as it is from then on, which a line on stderr says once.

    Whatever a compiled call raises, the plain one is tried: what that raises too is no fault of the compiler's.
    """
    try:
        from torch._functorch import config

        # The gradients' part would else be compiled in the midst of `backward`, where there is nothing to fall back to.
        if hasattr(config, "force_non_lazy_backward_lowering"):  # since torch 2.5 or so
            config.force_non_lazy_backward_lowering = True
        compiled = torch.compile(module._call_impl)
    except Exception as error:  # a Python that torch does not compile for yet
        note_uncompiled(f"{UNCOMPILED}: {_reason(error)}")
        return

    def call(*args: object, **kwargs: object) -> object:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            why = _reason(error)  # not the error itself, which holds on to all tensors of the call
        found = module._call_impl(*args, **kwargs)
        module._compiled_call_impl = None
        note_uncompiled(f"{UNCOMPILED}: {why}")
        return found

    module._compiled_call_impl = call


def note_uncompiled(said: str) -> None:
    """Say so on stderr, the first time in this process. Of what a child process has said, that line and no other counts."""
    line = next((line for line in said.splitlines() if line.startswith(UNCOMPILED)), "")
    if line and not _why:
        _why.append(line)
        tell(line)


def uncompiled() -> str:
    """What `note_uncompiled` has said in this process; empty where every model that was to be compiled has been."""
    return "".join(_why)


def _reason(error: Exception) -> str:
    """The line that matters of what may be pages of a compiler's output."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if " error: " in f" {line}"), lines[0])
    mend = "; install g++ and Python's headers (Debian: g++ and python3-dev)" if "C++" in str(error) else ""
    return "".join(c for c in line[:LONGEST] if c.isprintable()) + mend


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """A block of work without gradients, in which the model's products take oneDNN's layout of its weights.

    On a CPU, in float32 or bfloat16, this costs the weights' memory once more and about a pass over them; elsewhere
    it does nothing. The weights must not change inside the block.

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
                layer.prepacked = torch.ops.mkldnn._reorder_linear_weight(weight)
            yield
        finally:
            for layer in layers:
                layer.prepacked = None


def _gains(weight: Tensor) -> bool:
    """Whether products with this weight are faster through oneDNN: a plain rule, not a measurement."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.shape[1] >= LEAST_INPUTS
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
