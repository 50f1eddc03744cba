"""Memory that a training step needs on each device, computed before anything is allocated.

The state (weights, gradients and Adam's two moments, all float32) follows from the shape. The activations that autograd
saves are counted on fake tensors, which have shapes but no data, for one and two images in one and two blocks.
torch.compile saves less, so with it this is an upper bound.
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
USED = 0.9  # of a device's memory; the rest is for workspaces, fragmentation and the buffers of collectives
AT_ONCE = 2**28  # bytes of the widest activations when images go through a frozen network together


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd saves per image, in each block and outside of the blocks."""

    block: float
    outside: float


@dataclass(frozen=True)
class Step:
    """A training step of ``images`` at once on each of ``devices``.

    shard, recompute : as in `igpt.train.distributed.Distributed`; half : matrix products in bfloat16
    classes : of a fine-tune's head on the pooled features, beside the generative loss
    kept : the result of `kept_per_image`, if it is known already
    """

    shape: ModelShape
    images: int = 1
    devices: int = 1
    shard: bool = False
    recompute: bool = False
    half: bool = True
    classes: int = 0
    kept: Kept | None = None

    @property
    def state(self) -> float:
        """Bytes of weights, gradients and moments, or of this device's part of them."""
        return 4 * FLOAT * self._parameters / (self.devices if self.shard else 1)

    @property
    def memory(self) -> float:
        """Bytes on each device at the peak of the step."""
        shape, per_image = self.shape, self.kept or kept_per_image(self.shape, self.half)
        block = shape.block_parameters
        if self.shard:  # gathered weights and gradients: of two blocks, one of them prefetched, and of all outside of blocks
            transient = FLOAT * (4 * block + 2 * (self._parameters - shape.n_layer * block))
        else:  # gradients in the buckets of the all-reduce
            transient = FLOAT * self._parameters if self.devices > 1 else 0
        copies = HALF * self._parameters if self.half else 0
        activations = shape.n_layer * per_image.block + per_image.outside
        if self.recompute:
            activations = shape.n_layer * FLOAT * shape.n_ctx * shape.n_embd + per_image.block + per_image.outside
        if self.classes:
            activations += FLOAT * (shape.n_embd + 2 * self.classes)  # pooled features, class logits and their logarithms
        return self.state + transient + copies + self.images * activations

    @property
    def _parameters(self) -> int:
        """Number of parameters, including the head's."""
        return self.shape.parameters + self.classes * self.shape.n_embd


def fitting(step: Step, *, batch: int, room: float) -> Step | None:
    """The first variant of a step that fits: replicated before sharded, activations kept before recomputed, most images first.

    batch : images of a step on all devices; the images at once divide each device's share
    room : usable bytes of each device
    """
    share = -(-batch // step.devices)
    for shard in (False, True) if step.devices > 1 and not step.shard else (step.shard,):
        for recompute in (False, True) if not step.recompute else (True,):
            for images in sorted((n for n in range(1, share + 1) if share % n == 0), reverse=True):
                variant = replace(step, images=images, shard=shard, recompute=recompute)
                if variant.memory <= room:
                    return variant
    return None


@cache
def kept_per_image(shape: ModelShape, half: bool) -> Kept:
    """Bytes saved per image, from counts for one and two blocks and images, so that what is saved of the weights cancels."""
    # With two positions fewer, attention uses the fused kernel, as on a GPU, in half precision too; all that is saved is
    # proportional to the number of positions.
    scale = shape.n_ctx / (shape.n_ctx - 2)
    saved = {
        (blocks, images): _saved(replace(shape, n_layer=blocks, n_ctx=shape.n_ctx - 2), images, half)
        for blocks in (1, 2)
        for images in (1, 2)
    }
    one, two = (saved[blocks, 2] - saved[blocks, 1] for blocks in (1, 2))
    return Kept(scale * (two - one), scale * (2 * one - two))


def _saved(shape: ModelShape, images: int, half: bool) -> int:
    """Bytes of the tensors that the loss saves for its backward pass, without the parameters."""
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
            loss = model.loss(tokens, masked)  # kept alive until all is counted: ids of freed storages are reused
        total = sum(size for storage, size in sizes.items() if storage not in parameters)
        del loss
    return total
