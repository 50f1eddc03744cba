"""Tables of costs: of each recipe, of the published models on one and several GPUs, and of the released tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from igpt.companion.experiments.cells import declared_stages
from igpt.companion.experiments.costs import run_hours, run_room, with_parents
from igpt.companion.experiments.machines import CARD, CARDS, H100, UTILISATION
from igpt.companion.experiments.protocols import stage_demand
from igpt.companion.report.tables import Cell, ResultTable
from igpt.companion.results.signature import Signer
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.project import Project
from igpt.shape import Objective
from igpt.text import rounded
from igpt.train import memory
from igpt.train.memory import GIB, USED, Kept, Step
from igpt.train.recipe import Recipe, forward_flops
from igpt.train.recipes import PAPER, known_models, recipe

CARD_GIB, CARD_FLOPS = H100.gib, H100.rates.half
DEVICES = (1, 8, 32, 256)


def recipe_table(project: Project) -> ResultTable:
    """Every recipe: its settings, the cost of its pre-training and of its linear probe, and the command."""
    rows = []
    signer = Signer(project.notebooks)
    for plan in _recipes():
        bert = plan.shape.objective == "bert"
        shape = plan.shape
        probed = {"dataset": "digits" if plan.dataset == "digits" else "cifar10", "objective": shape.objective}
        probe = stage_demand(signer.in_full(Stage.of("linear_probe", model=plan.name, **probed))).work
        rows.append(
            (
                f"{plan.name}{', BERT' if bert else ''}",
                f"{shape.n_layer} x {shape.n_embd:,}, {shape.n_head} heads, {plan.side}x{plan.side}",
                f"{shape.parameters / 1e6:,.2f}",
                f"{plan.batch} x {plan.steps:,}",
                f"{plan.warmup:,}",
                f"{plan.learning_rate:g}",
                f"{3 * forward_flops(shape) / 1e9:,.3g}",
                rounded(plan.flops / CARD_FLOPS / 3600, least=0.01),
                rounded(probe.half / CARD_FLOPS, least=0.1),
                rounded(3600 * replace(probe, half=0.0).hours(H100.rates), least=0.1),
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
    """Each published model on one and several cards: how it is distributed, whether it fits, and how long it takes.

    Bytes saved per image come from the record of the notebook ``parameters``; without the record they are counted now.
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
                days = plan.flops / CARD_FLOPS / 3600 / devices / 24
                cells = (
                    "sharded" if fit.shard else "replicated",
                    "recomputed" if fit.recompute else "kept",
                    str(fit.images),
                    f"{fit.memory / GIB:.1f} GiB",
                    f"{days:,.2g}" if days < 10 else f"{days:,.0f}",
                )
            rows.append((f"{plan.name}, {plan.side}x{plan.side}", str(devices), *cells))
    columns = ("Model", f"{CARD}s", "State", "Activations", "Images at once", f"Of {CARD_GIB} GiB", "Days")
    caption = (
        f"Published models on 1 to {max(DEVICES)} cards of {CARD_GIB} GiB, of which {USED:.0%} are used: the least"
        f" intrusive way that fits, and days at {CARD_FLOPS / 1e12:.0f} TFLOP/s a card"
    )
    return ResultTable("memory", caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def fitting(plan: Recipe, devices: int, kept: Kept | None = None) -> Step | None:
    """The first variant of a recipe's step that fits on each card; None if none does, or the batch is not divisible.

    kept : as in `igpt.train.memory.Step`
    """
    if plan.batch % devices:
        return None
    return memory.fitting(Step(plan.shape, devices=devices, kept=kept), batch=plan.batch, room=USED * CARD_GIB * GIB)


def _recipes() -> list[Recipe]:
    """All recipes, the smallest first."""
    objectives: tuple[Objective, ...] = ("autoregressive", "bert")
    return [recipe(name, o) for name in known_models() for o in objectives if name in known_models(o)]


def released_costs(project: Project) -> ResultTable:
    """Costs of the released tier: one row per notebook, model and data set, the cheapest first, and the total.

    They do not depend on this machine, nor on what has been fetched or run already.
    """
    stages = with_parents(declared_stages("released"), Signer(project.notebooks).in_full)
    groups: dict[tuple[str, str], list[Stage]] = {}
    for stage in stages:
        words = [str(stage.parameters[name]) for name in ("model", "dataset") if name in stage.parameters]
        groups.setdefault((stage.notebook, ", ".join(words)), []).append(stage)
    rows = [(*group, *_released_row(groups[group])) for group in sorted(groups, key=lambda group: _card_hours(groups[group]))]
    rows.append(("all", "", *_released_row(stages)))
    columns = ("Notebook", "Of", "Stages", "GB to get", "GB of disk", *(card.title for card in CARDS))
    sources = "; ".join(f"{card.title}: {card.source}" for card in CARDS)
    caption = f"What the released tier takes: downloads (+: at least), disk with them at its peak, hours of one card. {sources}"
    return ResultTable("released-costs", caption, columns, tuple(tuple(Cell(text) for text in row) for row in rows))


def _released_row(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Number of stages, gigabytes to download, peak disk use with downloads, and hours on each card."""
    fetched, disk = run_room(stages)
    size = f"{sum(download.bytes for download in fetched) / 1e9:,.1f}{'' if all(download.exact for download in fetched) else '+'}"
    return (str(len(stages)), size, f"{disk / 1e9:,.1f}", *(rounded(hours, least=0.01) for hours in _card_hours(stages)))


def _card_hours(stages: Sequence[Stage]) -> list[float]:
    """Hours on each of `CARDS`."""
    return [sum(run_hours(stages, card)) for card in CARDS]
