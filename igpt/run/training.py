"""What ``igpt train`` does: one pre-training run on a token store, outside of any experiment."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from igpt.data.store import TokenStore
from igpt.data.tokens import train_parts
from igpt.errors import UsageError
from igpt.palette import Palette
from igpt.run.bar import Bar
from igpt.train.loop import WINDOW, Machine, Stopped, pretrain, weights_name
from igpt.train.recipes import recipe
from igpt.weights.read import released_palette

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
) -> tuple[str, int]:
    """Train or continue; what to say of it, and the exit code.

    Raises UsageError for an unknown recipe, tokens that are not the recipe's, or a folder of another run.
    """
    plan = recipe(name, objective)  # type: ignore[arg-type]  # refused there when it is no objective
    if steps is not None:
        plan = replace(plan, steps=steps, warmup=min(plan.warmup, max(steps // 20, 1)))
    colours = Palette.load(palette) if palette else released_palette()
    store = TokenStore(data)
    store.check_for(colours, positions=plan.shape.n_ctx)
    if len(colours) != plan.shape.n_vocab:
        raise UsageError(f"{name} has {plan.shape.n_vocab} colours, the palette {len(colours)}: give another")
    training, validation = train_parts(store)
    machine = replace(Machine.here(), micro_batch=micro_batch)
    try:
        with _stop_by_signal() as stopping, _Bar(name, out / "metrics.jsonl") as bar:
            losses = pretrain(
                plan,
                training,
                validation,
                palette=colours,
                seed=seed,
                folder=out,
                machine=replace(machine, stop=lambda: bool(stopping)),
                report=bar,
            )
    except Stopped as stopped:
        return str(stopped), STOPPED
    return f"{name}: {losses.validation[-1]:.4f} nats per token held out; weights in {out / weights_name(plan.steps)}", 0


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
    """A bar with loss and rate; a line for each line of the metrics where there is no terminal."""

    def __init__(self, name: str, metrics: Path) -> None:
        super().__init__(name, " steps")
        self._metrics = metrics

    def __call__(self, done: int, total: int) -> None:
        self.skip(done - 1)
        super().__call__(done, total)
        if done % WINDOW == 0:
            line = json.loads(self._metrics.read_text().splitlines()[-1])
            text = f"loss {line['loss']:.4f}, {line['tokens_per_second']:,} tokens/s"
            self._bar.set_postfix_str(text)
            if self._bar.disable:
                print(f"step {done:,} of {total:,}: {text}", file=sys.stderr, flush=True)
