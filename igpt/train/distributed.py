"""One model on one device or on many: replicated (DDP) or with its parameters sharded (FSDP2), by PyTorch's own parts.

Every process runs the same program. What they must agree on goes through `Distributed.sum`; what is whole on the first
one alone, such as the state that a checkpoint holds, through `Distributed.state` and `Distributed.restore`, so that a run may
go on with another number of devices than it began with.
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


class Loss(nn.Module):
    """The mean loss of some images as a module of its own, which is what DDP wraps; ``network`` is what is trained."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class GenerativeLoss(Loss):
    """Pre-training's: a model's own."""

    network: ImageGPT

    def forward(self, tokens: Tensor, masked: Tensor | None = None) -> Tensor:
        return self.network.loss(tokens, masked)


class Distributed:
    """A network, its Adam and its loss, on the device of this process and, where there is a group, on those of others."""

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
        """Put the network where it belongs, and give it Adam; parameters that need no gradient stay as they are.

        compiled : through torch.compile, where that works
        recompute : keep no activations inside of a block, and compute them again for its gradients
        shard : parameters, gradients and moments in equal parts over the processes
        """
        together = dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
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
        """A backward pass whose gradients go to the other processes only if it is the step's last."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            with self.loss.no_sync():
                yield
            return
        if self.sharded:
            self.network.set_requires_gradient_sync(last)  # type: ignore[operator]  # fully_shard gave it this
        yield

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of these numbers over all processes, the same on each."""
        return sum_over(values, self.device)

    def from_first(self, value: Anything) -> Anything:
        """What the first process has."""
        return from_first(value, self.device)

    def finite(self) -> bool:
        """Whether all parameters are numbers, here and elsewhere."""
        parts = (p.to_local() if hasattr(p, "to_local") else p for p in self.network.parameters())
        return self.sum([float(not all(bool(p.isfinite().all()) for p in parts))]) == [0.0]

    def weights(self) -> State:
        """The model's parameters, whole, by name; on the first process alone where they are sharded."""
        if not self.sharded:
            return self.network.state_dict()
        found: Any = get_model_state_dict(self.network, options=_WHOLE)
        return cast(State, found)

    def state(self) -> State:
        """Parameters as ``model.NAME`` and Adam's moments as ``adam.NAME.KEY``, whole on the first process."""
        # Weights first, which lets go of what an evaluation has gathered: the optimizer knows the parts alone.
        weights = {f"model.{name}": t for name, t in self.weights().items()}
        found: Any = get_optimizer_state_dict(self.network, self.optimizer, options=_WHOLE)
        moments = {f"adam.{name}.{key}": t for name, kept in found.get("state", {}).items() for key, t in kept.items()}
        return weights | moments

    def expected(self) -> dict[str, torch.Size]:
        """The shapes of what is in `state`: of what is trained two moments each, and a step's number."""
        found = {}
        for name, p in self.network.named_parameters():
            found[f"model.{name}"] = p.shape
            if p.requires_grad:
                found |= {f"adam.{name}.{key}": p.shape for key in ("exp_avg", "exp_avg_sq")}
                found[f"adam.{name}.step"] = torch.Size(())
        return found

    def restore(self, state: State) -> None:
        """Put back what `state` gave; ``state`` counts on the first process."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=self.size > 1)
        weights: Any = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
        moments: dict[str, State] = {}
        for name, tensor in state.items():
            if name.startswith("adam."):
                parameter, _, key = name.removeprefix("adam.").rpartition(".")
                moments.setdefault(parameter, {})[key] = tensor
        set_model_state_dict(self.network, weights, options=options)
        if self.from_first(bool(moments)):
            whole: Any = get_optimizer_state_dict(self.network, self.optimizer, options=_WHOLE)
            whole["state"] = moments
            set_optimizer_state_dict(self.network, self.optimizer, whole, options=options)


def sum_over(values: Sequence[float], device: str) -> list[float]:
    """The sums of these numbers over all processes, the same on each; themselves where there is no group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def from_first(value: Anything, device: str) -> Anything:
    """What the first process has; ``value`` where there is no group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, device=torch.device(device))
    return box[0]


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
