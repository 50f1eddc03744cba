"""How a training run uses the machine: device, precision, images at once, number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.machine import cores, free_memory
from igpt.shape import ModelShape
from igpt.train.memory import FLOAT, GIB, USED, Step, fitting

COMPILED = 64  # width from which a model is compiled, and on a CPU trained in half precision
SHARDED = 2e9  # number of parameters from which training state is sharded, as too large for one GPU: iGPT-XL
FIT = "fit.json"  # in a run's folder: the variant of its steps that fits into memory


@dataclass(frozen=True)
class Launch:
    """The processes of a run: nodes, devices per node, and HOST:PORT of the first node when there are several."""

    nodes: int = 1
    devices: int = 1
    rendezvous: str = ""

    @property
    def size(self) -> int:
        """Number of processes, one per device."""
        return self.nodes * self.devices

    @classmethod
    def here(cls, devices: int | None = None) -> Launch:
        """The launch of ``IGPT_NODES``, ``IGPT_DEVICES`` and ``IGPT_RENDEZVOUS``; by default one node with all its GPUs.

        Raises UsageError for values that are not numbers, and for several nodes without a rendezvous.
        """
        try:
            nodes = int(os.environ.get("IGPT_NODES") or 1)
            devices = devices or int(os.environ.get("IGPT_DEVICES") or max(torch.cuda.device_count(), 1))
        except ValueError:
            raise UsageError("IGPT_NODES and IGPT_DEVICES are numbers: set them again") from None
        rendezvous = os.environ.get("IGPT_RENDEZVOUS", "")
        if min(nodes, devices) < 1 or (nodes > 1 and ":" not in rendezvous):
            raise UsageError("several nodes meet at the first one's HOST:PORT: set IGPT_RENDEZVOUS to it")
        if torch.cuda.is_available() and devices > torch.cuda.device_count():
            raise UsageError(f"{devices} devices are asked for, and this machine has {torch.cuda.device_count()}: take fewer")
        return cls(nodes, devices, rendezvous)


@dataclass(frozen=True)
class Runtime:
    """How a run uses its devices; affects results only by rounding.

    bfloat16 : matrix products in half precision; weights and moments stay float32
    micro_batch : images per forward pass, to save memory; the process's whole share of a batch when None
    compiled, recompute, shard : as in `igpt.train.distributed.Distributed`
    minutes : time between two checkpoints
    stop : called after every step; True stops the run
    """

    device: str = "cpu"
    bfloat16: bool = False
    micro_batch: int | None = None
    compiled: bool = False
    recompute: bool = False
    shard: bool = False
    minutes: float = 5.0
    stop: Callable[[], bool] = field(default=lambda: False)

    @classmethod
    def here(cls, shape: ModelShape) -> Runtime:
        """The GPU if there is one, else the CPU, in half precision if it supports that; small models are not compiled."""
        wide, large = shape.n_embd >= COMPILED, shape.parameters > SHARDED
        if torch.cuda.is_available():
            return cls(device="cuda", bfloat16=True, compiled=wide, recompute=large, shard=large)
        return cls(bfloat16=bool(torch.cpu._is_avx512_bf16_supported()) and wide, compiled=wide)

    def fitted(
        self, shape: ModelShape, *, batch: int, folder: Path | None = None, classes: int = 0, launch: Launch | None = None
    ) -> Runtime:
        """The same runtime with as many images at once as fit into free memory, recomputing activations if needed.

        batch : images of a step on all devices; classes : of a fine-tune's head
        folder : stores the choice, so that a run resumed on the same kind of device cuts its batches, and rounds, as before
        Raises UsageError when not even one image fits.
        """
        launch = launch or Launch()
        step = Step(
            shape, devices=launch.size, shard=self.shard and launch.size > 1, recompute=self.recompute, half=self.bfloat16,
            classes=classes,
        )  # fmt: skip
        if self.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            room, card = USED * total, [torch.cuda.get_device_name(), total]
        else:  # other stages use the remaining threads, and their share of the memory
            share = min(torch.get_num_threads() / cores(), 1.0)
            room, card = USED * share * free_memory() / launch.devices, []
            room -= FLOAT * shape.parameters if classes else 0  # fine-tuning trains a copy of the model
        key = [self.device, *card, self.bfloat16, batch, classes, launch.devices, launch.nodes, shape.as_dict()]
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = read_json(folder / FIT) if folder else {}
            if saved["key"] == key:
                return replace(self, **saved["fit"])
        fit = fitting(step, batch=batch, room=room)
        if fit is None:
            raise UsageError(
                f"a step of this model ({shape.parameters:,} parameters) does not fit into the {room / GIB:.1f} GiB that"
                f" {'the device has' if launch.size == 1 else f'each of {launch.size} devices has'} for it: take more devices or"
                " larger ones"
            )
        chosen = {"micro_batch": fit.images, "shard": fit.shard, "recompute": fit.recompute}
        if folder:
            write_text(folder / FIT, json.dumps({"key": key, "fit": chosen}))
        return replace(self, **chosen)  # type: ignore[arg-type]
