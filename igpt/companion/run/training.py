"""What ``igpt train`` does: one pre-training run on a token store, outside of any experiment."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from igpt.palette import Palette
from igpt.progress import Bar, tell
from igpt.shape import ModelShape
from igpt.train.cost import training_flops
from igpt.train.launch import Launch, train_store
from igpt.train.loop import WINDOW, Runtime, Stopped, weights_name
from igpt.train.recipe import Recipe
from igpt.train.recipes import recipe
from igpt.weights.own import released_palette

LONG, LARGEST, REPEATS = 0.02, 16384, 5  # of the products held against: seconds of one, a side, how many
STOPPED = 75  # "temporary failure, try again": what schedulers take for one


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
) -> tuple[str, int]:
    """Train or continue; what to say of it, and the exit code.

    micro_batch : images at once on a device; as many as its memory holds when None
    Raises UsageError for an unknown recipe, tokens that are not the recipe's, a folder of another run, or a model of which
    not even one image fits.
    """
    plan = recipe(name, objective)  # type: ignore[arg-type]  # refused there when it is no objective
    if steps is not None:
        plan = replace(plan, steps=steps, warmup=min(plan.warmup, max(steps // 20, 1)))
    launch = Launch.here(devices)
    runtime = _fitted(plan, launch) if micro_batch is None else replace(Runtime.here(plan.shape), micro_batch=micro_batch)
    try:
        with _stop_by_signal() as stopping, _Bar(plan, out / "metrics.jsonl", runtime, launch) as bar:
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
        return str(stopped), STOPPED
    return f"{name}: {losses.validation[-1]:.4f} nats per token held out; weights in {out / weights_name(plan.steps)}", 0


def _fitted(plan: Recipe, launch: Launch) -> Runtime:
    """The machine here, with as many images at once as its memory holds; with no number where it holds all that a step has."""
    found = Runtime.here(plan.shape).fitted(plan.shape, batch=plan.batch, devices=launch.devices, nodes=launch.nodes)
    whole = found.micro_batch == -(-plan.batch // (launch.devices * launch.nodes))
    return replace(found, micro_batch=None) if whole else found


@contextmanager
def _stop_by_signal() -> Iterator[list[int]]:
    """A list that a signal to stop is entered into, instead of ending the process where it stands."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:  # again: at once, at the cost of what came since the last checkpoint
            signal.default_int_handler(number, frame)
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar(Bar):
    """A bar with loss, rate and their part of the peak; a line for each line of the metrics without a terminal."""

    def __init__(self, plan: Recipe, metrics: Path, runtime: Runtime, launch: Launch) -> None:
        super().__init__(plan.name, " steps")
        self._metrics = metrics
        self._said = 0
        self._flops = token_flops(plan.shape)
        # A node's processes without GPUs share its cores, all of which the products here had.
        self._peak = product_rate(runtime) * launch.nodes * (launch.devices if runtime.device == "cuda" else 1)

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        note = ""
        if done // WINDOW > self._said:
            self._said = done // WINDOW
            line = json.loads(self._metrics.read_text().splitlines()[-1])
            rate = line["tokens_per_second"]
            note = f"loss {line['loss']:.4f}, {rate:,} tokens/s, {rate * self._flops / self._peak:.0%} of the measured peak"
            if self.hidden:
                tell(f"step {done:,} of {total:,}: {note}")
        super().__call__(done, total, note)


def product_rate(runtime: Runtime) -> float:
    """Operations a second of one device, in square products of the precision that is trained in."""
    rate = peak_rate(partial(_product_seconds, runtime))
    if runtime.device == "cuda":
        torch.cuda.empty_cache()  # other processes may train on this card
    return rate


def peak_rate(seconds: Callable[[int], float]) -> float:
    """Operations a second of the fastest square product found; ``seconds`` are what one of so many rows takes.

    Products grow until one takes so long that starting it does not count.
    """
    side, fastest, rate = 512, 0.0, 0.0
    while fastest < LONG and side < LARGEST:
        side *= 2
        fastest = seconds(side)
        rate = max(rate, 2 * side**3 / fastest)
    return rate


def _product_seconds(runtime: Runtime, side: int) -> float:
    """The fastest of some products, since other work can only slow one down. A card is waited for at both ends."""
    a = torch.randn(side, side, device=runtime.device, dtype=torch.bfloat16 if runtime.bfloat16 else torch.float32)

    def wait() -> None:
        if a.is_cuda:
            torch.cuda.synchronize()

    found = []
    for _ in range(REPEATS):
        wait()
        start = time.perf_counter()
        a @ a
        wait()
        found.append(time.perf_counter() - start)
    return min(found)


def token_flops(shape: ModelShape) -> float:
    """Operations of a training step for a token: of causal attention the half that is computed, as the other is masked."""
    masked = 0 if shape.objective == "bert" else 3 * 2 * shape.n_layer * shape.n_embd * shape.n_ctx
    return training_flops(shape, 1) / shape.n_ctx - masked
