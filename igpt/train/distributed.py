"""A model on one device or several: replicated with PyTorch's DDP, or sharded with FSDP2.

Every process runs the same program. `Distributed.sum` gives all processes the same numbers. Checkpoints hold the whole
state, gathered on the first process (`Distributed.state`, `Distributed.restore`), so that a run may resume on a
different number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from igpt.fast import compile_module
from igpt.model import Block, ImageGPT

Anything = TypeVar("Anything")
State = dict[str, Tensor]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Loss(nn.Module):
    """The mean loss of some images, as a module that DDP can wrap; ``network`` is trained."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class GenerativeLoss(Loss):
    """The loss of pre-training."""

    network: ImageGPT

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        return self.network.loss(tokens, masked)


class Distributed:
    """A network with its loss and Adam optimizer, on this process's device and distributed over its process group, if any."""

    def __init__(
        self,
        loss: Loss,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        device: str,
        compiled: bool = False,
        recompute: bool = False,
        shard: bool = False,
    ) -> None:
        """Move the network to its device, wrap it, and make its optimizer.

        compiled : use torch.compile, if that works
        recompute : activation checkpointing: compute the activations inside of blocks again in the backward pass
        shard : split parameters, gradients and moments equally over the processes
        """
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = device
        self.network = loss.network.to(device)
        self.sharded = shard and self.size > 1
        blocks = [module for module in self.network.modules() if isinstance(module, Block)]
        if recompute:
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if self.sharded:
            for block in blocks:
                if compiled:
                    compile_module(block)
                fully_shard(block)
            fully_shard(self.network)
        self.loss: nn.Module = loss
        if compiled and not self.sharded:
            compile_module(self.loss)
        if self.size > 1 and not self.sharded:
            self.loss = DistributedDataParallel(self.loss)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=learning_rate, betas=betas, fused=True)

    @contextmanager
    def gathering(self, last: bool) -> Iterator[None]:
        """Context of a backward pass; gradients are reduced over processes only in the last one of a step."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            with self.loss.no_sync():
                yield
            return
        if self.sharded:
            self.network.set_requires_gradient_sync(last)  # type: ignore[operator]  # a method that fully_shard adds
        yield

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same on each."""
        return sum_over(values, self.device)

    def from_first(self, value: Anything) -> Anything:
        """The first process's value, on every process."""
        return from_first(value, self.device)

    def finite(self) -> bool:
        """Whether all parameters are finite, on all processes."""
        shards = (p.to_local() if hasattr(p, "to_local") else p for p in self.network.parameters())
        return self.sum([float(not all(bool(p.isfinite().all()) for p in shards))]) == [0.0]

    def weights(self) -> State:
        """The unsharded parameters by name; when sharded, on the first process only."""
        if not self.sharded:
            return self.network.state_dict()
        return cast(State, get_model_state_dict(self.network, options=WHOLE))

    def state(self) -> State:
        """Parameters as ``model.NAME`` and Adam's moments as ``adam.NAME.KEY``, unsharded, on the first process."""
        # Weights first: this frees parameters that an evaluation has gathered.
        weights = {f"model.{name}": t for name, t in self.weights().items()}
        adam: Any = get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)
        moments = {f"adam.{name}.{key}": t for name, tensors in adam.get("state", {}).items() for key, t in tensors.items()}
        return weights | moments

    def expected(self) -> dict[str, torch.Size]:
        """The shapes in `state`."""
        shapes = {}
        for name, p in self.network.named_parameters():
            shapes[f"model.{name}"] = p.shape
            if p.requires_grad:
                shapes |= {f"adam.{name}.{key}": p.shape for key in ("exp_avg", "exp_avg_sq")}
                shapes[f"adam.{name}.step"] = torch.Size(())
        return shapes

    def restore(self, state: State) -> None:
        """Load a `state`; the first process's is broadcast."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.size > 1)
        weights: Any = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
        moments: dict[str, State] = {}
        for name, tensor in state.items():
            if name.startswith("adam."):
                parameter, _, key = name.removeprefix("adam.").rpartition(".")
                moments.setdefault(parameter, {})[key] = tensor
        set_model_state_dict(self.network, weights, options=options)
        if self.from_first(bool(moments)):
            adam: Any = get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)
            adam["state"] = moments
            set_optimizer_state_dict(self.network, self.optimizer, adam, options=options)


def sum_over(values: Sequence[float], device: str) -> list[float]:
    """Sums over all processes, the same on each; the values themselves without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def from_first(value: Anything, device: str) -> Anything:
    """The first process's value, on every process; ``value`` itself without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device(device))
    return values[0]
