"""``igpt train``: one pre-training run on a token store, independent of the experiments."""

from __future__ import annotations

import json
import math
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import torch
from torch.utils.benchmark import Timer

from igpt.companion.run.own_recipe import OwnRecipe, class_labels, is_recipe_file, own_recipe, shortened
from igpt.data import data_card
from igpt.data.store import TokenStore
from igpt.errors import UsageError
from igpt.files import read_json, write_text
from igpt.palette import Palette
from igpt.pretrained import open_weights
from igpt.progress import Bar, tell
from igpt.shape import ModelShape
from igpt.train.checkpoint import Losses
from igpt.train.engine import WINDOW, Stopped
from igpt.train.launch import store_parts, train_store
from igpt.train.loop import check_plan, weights_name
from igpt.train.recipe import Recipe, training_flops
from igpt.train.recipes import TRAINED, model_of, recipe
from igpt.train.runtime import Launch, Runtime
from igpt.weights.check import shape_in_words
from igpt.weights.existing import Existing
from igpt.weights.own import load_weights, released_palette, weights_digest
from igpt.weights.training_run import METRICS, is_training, read_training, training_palette

CARD = "card.json"  # as of a published model, see `igpt.companion.run.publish`
ORIGIN = "origin.json"  # beside the weights that a run begins from: what they were called
PACKAGES = ("igpt", "torch", "numpy")
STOPPED = 75  # EX_TEMPFAIL, which schedulers read as "try again"


def train(
    name: str,
    objective: str | None,
    *,
    data: Path,
    out: Path,
    steps: int | None,
    seed: int,
    palette: Path | None,
    micro_batch: int | None,
    devices: int | None,
    begin_from: str | None = None,
) -> tuple[str | None, int]:
    """Train or resume; the line to print, and the exit code. A stop at a checkpoint is reported on stderr instead.

    name : of a recipe, or the path of a recipe's file
    objective : None for the recipe's, which is autoregressive for a name
    palette : None for that of the weights begun from, else the released one
    micro_batch : images per device and pass; None for as many as fit into memory
    begin_from : weights as `igpt.pretrained.open_weights` takes them; None to draw them from the seed

    Raises UsageError for an unknown or invalid recipe, tokens or weights that do not fit it, a folder of a different run, or a
    model of which not even one image fits into memory.
    """
    if is_recipe_file(name):
        own = own_recipe(Path(name), objective)
    else:
        own = OwnRecipe(recipe(name, objective or "autoregressive"), ())  # type: ignore[arg-type]  # raises for an unknown one
    plan = own.recipe if steps is None else shortened(own.recipe, steps)
    launch = Launch.here(devices)
    runtime = _runtime(plan, launch, micro_batch)
    colours = Palette.load(palette) if palette else None
    begun = None if begin_from is None else _weights_to_begin_from(begin_from, plan, colours)
    colours = colours or (begun.palette if begun else released_palette())
    store = TokenStore(data)
    classes = class_labels(own.classes, store.header.dataset)
    training, _ = store_parts(plan, data, colours, classes=classes)
    check_plan(plan, training, runtime, processes=launch.size)
    origin, had_ended = _begin(out, begun), (out / weights_name(plan.steps)).exists()
    del begun  # frees the weights, which each process reads again
    runtime = _runtime(plan, launch, micro_batch, folder=out)
    try:
        with stop_by_signal() as stopping, _Bar(plan, out / METRICS, runtime, launch) as bar:
            losses = train_store(
                plan,
                data,
                colours,
                seed=seed,
                folder=out,
                runtime=replace(runtime, stop=lambda: bool(stopping)),
                classes=classes,
                begin_from=out / weights_name(0) if origin else None,
                launch=launch,
                report=bar,
            )
    except Stopped as stopped:
        tell(str(stopped))
        return None, STOPPED
    weights = out / weights_name(plan.steps)
    if not (weights / CARD).exists():  # a run that had ended keeps its own
        run = _run_fields(losses, runtime)
        if had_ended:  # without a card, as when it was killed before: it is not known how and when
            run = {"losses": run["losses"]}
        card = {
            "model": plan.name,
            "recipe": plan.as_dict(),
            "seed": seed,
            "from": origin,
            **_data_fields(store, own.classes),
            **run,
        }
        write_text(weights / CARD, json.dumps(card, indent=1) + "\n")
    return f"{plan.name}: {losses.validation[-1]:.4f} nats per token held out; weights in {weights}", 0


def _runtime(plan: Recipe, launch: Launch, micro_batch: int | None, *, folder: Path | None = None) -> Runtime:
    """How a run uses this machine; ``folder`` keeps it, so that the run resumes with the same rounding."""
    runtime = Runtime.here(plan.shape)
    if micro_batch is not None:
        return replace(runtime, micro_batch=micro_batch)
    fitted = runtime.fitted(plan.shape, batch=plan.batch, folder=folder, launch=launch)
    whole = fitted.micro_batch == -(-plan.batch // launch.size)  # the device's share of the batch in one pass
    return replace(fitted, micro_batch=None) if whole else fitted


def _weights_to_begin_from(word: str, plan: Recipe, palette: Palette | None) -> Existing:
    """Existing weights for a recipe. Raises UsageError for another shape or palette, and as `open_weights` does."""
    path, source = Path(word), word
    if path.is_dir() and is_training(path) and word not in TRAINED:
        network, step = read_training(path)
        own, source = training_palette(path), f"{word} after step {step:,}"
    else:
        network, own = open_weights(word)
    if network.wtet is None:
        raise UsageError(f"{word} holds weights without an output matrix, as a classifier's: give those of a generative model")
    if network.shape != plan.shape:
        raise UsageError(
            f"{word} holds {shape_in_words(network.shape)}, and {plan.name} is {shape_in_words(plan.shape)}: give the recipe"
            f" {model_of(network.shape)} and --objective {network.shape.objective}, or begin from other weights"
        )
    if palette is not None and palette.digest != own.digest:
        raise UsageError(
            f"{word} has the palette {own.digest[:12]}, and --palette is {palette.digest[:12]}: leave --palette out, or begin"
            " from other weights"
        )
    return Existing(network, own, [], source)


def _begin(out: Path, begun: Existing | None) -> dict[str, str] | None:
    """Copy the weights that a run begins from into its folder, as those after step 0; what its card says of them.

    Raises UsageError for a folder of weights, and for one whose run begins from others, or from none.
    """
    start = out / weights_name(0)
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds weights: give another folder for the training")
    if begun is None:
        if start.exists():
            raise UsageError(
                f"{out} holds a training that begins from weights: give them too (--from {start}), or another folder"
            )
        return None
    digest = weights_digest(begun.network)
    if not start.exists():
        if is_training(out):
            raise UsageError(f"{out} holds a training that begins from no weights: leave --from out, or give another folder")
        begun.keep(start)
        write_text(start / ORIGIN, json.dumps({"weights": begun.source, "sha256": digest}) + "\n")
    elif weights_digest(load_weights(start)[0]) != digest:
        raise UsageError(
            f"{out} holds a training that begins from other weights than {begun.source}: give its own (--from {start}), or"
            " another folder"
        )
    try:
        source = str(read_json(start / ORIGIN)["weights"])  # the same weights may be given by another name later
    except (OSError, ValueError, KeyError, TypeError):  # killed before it was written
        source = begun.source
    return {"weights": source, "sha256": digest}


def _data_fields(store: TokenStore, classes: tuple[str | int, ...]) -> dict[str, object]:
    """What a card says of the data."""
    card, header = data_card(store.header.dataset), store.header.model_dump(exclude={"version", "shards"})
    return {
        "data": card.title,
        "terms": card.terms,
        "tokens": {**header, "sha256": store.digest},
        "classes": [*classes] or "all",
    }


def _run_fields(losses: Losses, runtime: Runtime) -> dict[str, object]:
    """What a card says of the run; the losses are in nats per token."""
    rows = zip(losses.steps, losses.train, losses.validation, strict=True)
    return {
        "losses": [{"step": step, "train": training, "held_out": held_out} for step, training, held_out in rows],
        "precision": f"float32{', trained with bfloat16 products' if runtime.bfloat16 else ''}",
        "command": shlex.join(["igpt", *sys.argv[1:]]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {**{name: version(name) for name in PACKAGES}, "python": platform.python_version()},
    }


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
