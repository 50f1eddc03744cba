"""What each published model costs to train, as tables: operations, hours, memory, and what fits on how many cards."""

from __future__ import annotations

from dataclasses import replace

from igpt.companion.experiments.costs import stage_work
from igpt.companion.experiments.machines import H100
from igpt.companion.report.tables import Cell, ResultTable
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.project import Project
from igpt.shape import Objective
from igpt.train import memory
from igpt.train.cost import CARD, CARD_FLOPS, UTILISATION, forward_flops, gpu_hours, pretraining_flops
from igpt.train.memory import GIB, USED, Fit, Kept
from igpt.train.recipe import Recipe
from igpt.train.recipes import LAPTOP, PAPER, SMALL, TINY, recipe

CARD_GIB = 80
DEVICES = (1, 8, 32, 256)


def recipe_table(project: Project) -> ResultTable:
    """Every recipe: its settings, what its pre-training and the linear probe of its layers take, and the command."""
    rows = []
    signer = Signer(project.notebooks)
    for plan in _recipes():
        bert = plan.shape.objective == "bert"
        shape = plan.shape
        probed = {"dataset": "digits" if plan.name in TINY else "cifar10", "objective": shape.objective}
        probe = stage_work(signer.in_full(Stage.of("linear_probe", model=plan.name, **probed)))
        rows.append(
            (
                f"{plan.name}{', BERT' if bert else ''}",
                f"{shape.n_layer} x {shape.n_embd:,}, {shape.n_head} heads, {plan.side}x{plan.side}",
                f"{shape.parameters / 1e6:,.2f}",
                f"{plan.batch} x {plan.steps:,}",
                f"{plan.warmup:,}",
                f"{plan.learning_rate:g}",
                f"{3 * forward_flops(shape) / 1e9:,.3g}",
                _hours(gpu_hours(pretraining_flops(plan))),
                _seconds(gpu_hours(probe.half)),
                _seconds(replace(probe, half=0.0).hours(H100.rates)),
                f"igpt train {plan.name}{' --objective bert' if bert else ''}",
            )
        )
    columns = (
        *("Recipe", "Blocks x width", "Parameters (M)", "Batch x steps", "Warm-up", "Rate"),
        *("GFLOP an image", f"{CARD}-hours", "Probe: features (s)", "Probe: solving (s)", "Command"),
    )
    caption = (
        f"Every recipe and its cost: {CARD}-hours at {UTILISATION:.0%} of the card's dense bfloat16 rate; seconds of it for the"
        " linear probe with its baselines on CIFAR-10 (on the digits for the tiny tier); solving is in float64"
    )
    return ResultTable("recipes", caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def memory_table(project: Project) -> ResultTable:
    """Each published model on one card and on many: how it is spread, what fits, how long it takes.

    What a step keeps of an image comes from the record of the parameters' notebook; it is counted now where there is none.
    """
    rows = []
    record = RecordStore(project).read(Stage.of("parameters"))
    counted = {str(row["model"]): row for row in (record.series.get("kept", []) if record else [])}
    for plan in (recipe(name) for name in PAPER):
        for devices in DEVICES:
            row = counted.get(plan.name)
            kept = Kept(float(row["block"]), float(row["outside"])) if row else None  # type: ignore[arg-type]
            try:
                fit = fitting(plan, devices, kept)
            except ImportError:  # without torch nothing is counted
                return ResultTable("memory", "Not counted yet: make book counts it", ("Status",), ((Cell("pending"),),))
            if plan.batch % devices:
                cells = ("–", "–", "–", f"no: {plan.batch} images cannot be shared by {devices} cards", "–")
            elif fit is None:
                cells = ("–", "–", "–", "no", "–")
            else:
                days = gpu_hours(pretraining_flops(plan)) / devices / 24
                cells = (
                    "sharded" if fit.shard else "replicated",
                    "recomputed" if fit.recompute else "kept",
                    str(fit.images),
                    f"{fit.memory.total / GIB:.1f} GiB",
                    f"{days:,.2g}" if days < 10 else f"{days:,.0f}",
                )
            rows.append((f"{plan.name}, {plan.side}x{plan.side}", str(devices), *cells))
    columns = ("Model", f"{CARD}s", "State", "Activations", "Images at once", f"Of {CARD_GIB} GiB", "Days")
    caption = (
        f"Published models on 1 to {max(DEVICES)} cards of {CARD_GIB} GiB, of which {USED:.0%} are used: the least"
        f" intrusive way that fits, and days at {CARD_FLOPS / 1e12:.0f} TFLOP/s a card"
    )
    return ResultTable("memory", caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def fitting(plan: Recipe, devices: int, kept: Kept | None = None) -> Fit | None:
    """The least intrusive way in which a recipe fits on each card; None where none does, or its batch cannot be shared.

    kept : as `igpt.train.memory.step_memory` takes it
    """
    if plan.batch % devices:
        return None
    return memory.fitting(plan.shape, batch=plan.batch, room=USED * CARD_GIB * GIB, devices=devices, kept=kept)


def _recipes() -> list[Recipe]:
    """All recipes, the published ones first."""
    objectives: tuple[Objective, ...] = ("autoregressive", "bert")
    names = [*PAPER, *SMALL, *LAPTOP, *TINY]
    return [recipe(name, o) for name in names for o in objectives if o == "autoregressive" or name not in PAPER or PAPER[name][3]]


def _seconds(hours: float) -> str:
    """Hours as seconds, to two significant digits."""
    return "under 0.1" if hours * 3600 < 0.1 else f"{float(f'{hours * 3600:.2g}'):,.10g}"


def _hours(hours: float) -> str:
    """Hours to two significant digits."""
    return "under 0.01" if hours < 0.01 else f"{float(f'{hours:.2g}'):,.10g}"
