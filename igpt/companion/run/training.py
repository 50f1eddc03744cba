"""``igpt train``: one pre-training run on a token store, independent of the experiments."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from torch.utils.benchmark import Timer

from igpt.palette import Palette
from igpt.progress import Bar, tell
from igpt.shape import ModelShape
from igpt.train.engine import WINDOW, Stopped
from igpt.train.launch import train_store
from igpt.train.loop import weights_name
from igpt.train.recipe import Recipe, training_flops
from igpt.train.recipes import recipe
from igpt.train.runtime import Launch, Runtime
from igpt.weights.own import released_palette

STOPPED = 75  # EX_TEMPFAIL, which schedulers read as "try again"


def train(
    name: str,
    objective: str,
    *,
    data: Path,
    out: Path,
    steps: int | None,
    seed: int,
    palette: Path | None,
    micro_batch: int | None,
    devices: int | None,
) -> tuple[str | None, int]:
    """Train or resume; the line to print, and the exit code. A stop at a checkpoint is reported on stderr instead.

    micro_batch : images per device and pass; None for as many as fit into memory

    Raises UsageError for an unknown recipe, tokens that do not fit the recipe, a folder of a different run, or a model of which
    not even one image fits into memory.
    """
    plan = recipe(name, objective)  # type: ignore[arg-type]  # raises for an unknown objective
    if steps is not None:
        plan = replace(plan, steps=steps, warmup=min(plan.warmup, max(steps // 20, 1)))
    launch, runtime = Launch.here(devices), Runtime.here(plan.shape)
    if micro_batch is None:
        runtime = runtime.fitted(plan.shape, batch=plan.batch, launch=launch)
        if runtime.micro_batch == -(-plan.batch // launch.size):
            runtime = replace(runtime, micro_batch=None)  # the device's share of the batch in one pass
    else:
        runtime = replace(runtime, micro_batch=micro_batch)
    try:
        with stop_by_signal() as stopping, _Bar(plan, out / "metrics.jsonl", runtime, launch) as bar:
            losses = train_store(
                plan,
                data,
                Palette.load(palette) if palette else released_palette(),
                seed=seed,
                folder=out,
                runtime=replace(runtime, stop=lambda: bool(stopping)),
                launch=launch,
                report=bar,
            )
    except Stopped as stopped:
        tell(str(stopped))
        return None, STOPPED
    return f"{name}: {losses.validation[-1]:.4f} nats per token held out; weights in {out / weights_name(plan.steps)}", 0


@contextmanager
def stop_by_signal() -> Iterator[list[int]]:
    """Context manager: the first stop signal is appended to the list instead of ending the process; the second interrupts."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def ask(number: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)

    handlers = {number: signal.signal(number, ask) for number in signals}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Bar(Bar):
    """A progress bar with loss, rate and fraction of the peak rate; without a terminal, one line per line of the metrics."""

    def __init__(self, plan: Recipe, metrics: Path, runtime: Runtime, launch: Launch) -> None:
        super().__init__(plan.name, " steps")
        self._metrics = metrics
        self._windows = 0  # of the metrics, reported so far
        self._flops = token_flops(plan.shape)
        # Without GPUs, the processes of a node share its cores, and the peak was measured on all cores.
        self._peak = product_rate(runtime) * (launch.size if runtime.device == "cuda" else launch.nodes)

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        if done // WINDOW > self._windows:
            self._windows = done // WINDOW
            line = json.loads(self._metrics.read_text().splitlines()[-1])
            rate = line["tokens_per_second"]
            note = f"loss {line['loss']:.4f}, {rate:,} tokens/s, {rate * self._flops / self._peak:.0%} of the measured peak"
            if self.hidden:
                tell(f"step {done:,} of {total:,}: {note}")
        super().__call__(done, total, note)


def product_rate(runtime: Runtime) -> float:
    """Measured FLOP/s of one device in large square matrix products, in the precision of training."""
    side = 2048
    if runtime.device == "cuda":  # three matrices in a twentieth of the card's free memory
        side = min(16384, max(side, math.isqrt(torch.cuda.mem_get_info()[0] // (20 * 3 * 4)) // 128 * 128))
    a = torch.randn(side, side, device=runtime.device, dtype=torch.bfloat16 if runtime.bfloat16 else torch.float32)
    timer = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    rate = 2 * side**3 / min(timer.timeit(1).mean for _ in range(3))
    if runtime.device == "cuda":
        del a, timer
        torch.cuda.empty_cache()  # free the card for the training processes
    return rate


def token_flops(shape: ModelShape) -> float:
    """FLOPs of a training step per token; of causal attention only the unmasked half."""
    masked = 0 if shape.objective == "bert" else 3 * 2 * shape.n_layer * shape.n_embd * shape.n_ctx
    return training_flops(shape, 1) / shape.n_ctx - masked
