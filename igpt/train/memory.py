"""What a training step needs of a device's memory, before anything is allocated.

The state (weights, gradients, Adam's two moments, all float32) follows from the shape. What a step keeps for its
gradients is counted on fake tensors, which have shapes and no numbers, by what autograd saves of one and of two
images in one and in two blocks. torch.compile keeps less; so this is an upper bound with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from igpt.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor

FLOAT, HALF = 4, 2  # bytes
GIB = 2**30
USED = 0.9  # of a device's memory; the rest is for what no count sees: workspaces, fragments, the collectives' buffers


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the height of a step."""

    state: float  # weights, gradients and moments, or this device's part of them
    passing: float  # sharded: weights and gradients that are whole for a moment; replicated: gradients on their way
    copies: float  # weights in half precision
    activations: float  # of the images that go through at once

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.passing + self.copies + self.activations


def step_memory(
    shape: ModelShape,
    *,
    images: int,
    devices: int = 1,
    shard: bool = False,
    recompute: bool = False,
    half: bool = True,
    kept: Kept | None = None,
    classes: int = 0,
) -> Memory:
    """Memory of a step on each of ``devices``; ``images`` go through each at once, see `igpt.train.distributed.Distributed`.

    kept : what `kept_per_image` found, where it has been counted already
    classes : of the head that a fine-tune has on the pooled features, beside the generative loss
    """
    head = classes * shape.n_embd
    block = 12 * shape.n_embd**2 + 2 * shape.n_embd
    outside = shape.parameters - shape.n_layer * block
    parts = devices if shard else 1
    on_their_way = FLOAT * (shape.parameters + head) if devices > 1 else 0
    # Sharded: of two blocks, the next one being fetched early, and of what lies outside of blocks.
    passing = FLOAT * (2 * 2 * block + 2 * (outside + head)) if shard else on_their_way
    image = kept or kept_per_image(shape, half)
    bytes_of_one = shape.n_layer * image.block + image.outside
    if recompute:
        bytes_of_one = shape.n_layer * FLOAT * shape.n_ctx * shape.n_embd + image.block + image.outside
    if classes:
        bytes_of_one += FLOAT * (shape.n_embd + 2 * classes)  # pooled features, class logits and their logarithms
    return Memory(
        state=4 * FLOAT * (shape.parameters + head) / parts,
        passing=passing,
        copies=HALF * (shape.parameters + head) if half else 0,
        activations=images * bytes_of_one,
    )


@dataclass(frozen=True)
class Fit:
    """A way in which a step fits on each device."""

    shard: bool
    recompute: bool
    images: int  # that go through a device at once
    memory: Memory


def fitting(
    shape: ModelShape,
    *,
    batch: int,
    room: float,
    devices: int = 1,
    shard: bool = False,
    recompute: bool = False,
    half: bool = True,
    kept: Kept | None = None,
    classes: int = 0,
) -> Fit | None:
    """The first that fits: replicated before sharded, activations kept before recomputed, as many images as may be.

    batch : images of a step on all devices; what goes through one at once divides its share
    room : bytes of each device that may be used
    shard, recompute : at least so; half, kept, classes : as in `step_memory`
    """
    share = -(-batch // devices)
    for sharded in (False, True) if devices > 1 and not shard else (shard,):
        for again in (False, True) if not recompute else (True,):
            for images in sorted((n for n in range(1, share + 1) if share % n == 0), reverse=True):
                need = step_memory(
                    shape,
                    images=images,
                    devices=devices,
                    shard=sharded,
                    recompute=again,
                    half=half,
                    kept=kept,
                    classes=classes,
                )
                if need.total <= room:
                    return Fit(sharded, again, images, need)
    return None


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of one image."""

    block: float
    outside: float


@cache
def kept_per_image(shape: ModelShape, half: bool) -> Kept:
    """Counted on one block and on two, with one image and with two, so that what is kept of weights drops out."""
    # At two positions less the attention is the fused one, as on a card, also in half precision; every part of what
    # is kept grows with the positions.
    scale = shape.n_ctx / (shape.n_ctx - 2)
    count = {
        (blocks, images): _saved(replace(shape, n_layer=blocks, n_ctx=shape.n_ctx - 2), images, half)
        for blocks in (1, 2)
        for images in (1, 2)
    }
    one, two = (count[blocks, 2] - count[blocks, 1] for blocks in (1, 2))
    return Kept(scale * (two - one), scale * (2 * one - two))


def _saved(shape: ModelShape, images: int, half: bool) -> int:
    """Bytes of everything that the loss keeps for its gradients, parameters apart."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from igpt.model import ImageGPT

    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        model = ImageGPT(shape)
        tokens = torch.zeros(images, shape.n_ctx, dtype=torch.int64)
        masked = torch.ones(images, shape.n_ctx, dtype=torch.bool) if shape.objective == "bert" else None
        parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            loss = model.loss(tokens, masked)  # kept until all is counted: a freed storage's number is used again
        total = sum(size for storage, size in sizes.items() if storage not in parameters)
        del loss
    return total
