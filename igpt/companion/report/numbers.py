"""Numbers for the book's prose, by name: published, measured, or facts of the code. None is typed by hand."""

from __future__ import annotations

from functools import cache

from igpt.companion.experiments.cells import experiments
from igpt.companion.experiments.machines import CARD, UTILISATION
from igpt.companion.experiments.measures import ACCURACY_MARGIN
from igpt.companion.experiments.published import published_rows
from igpt.companion.experiments.tiers import TIERS
from igpt.companion.report.live import live_number
from igpt.companion.report.tables import Cell, published_cell, recorded_cell, tier_cell
from igpt.companion.results.notebooks import near_misses, read_notebook
from igpt.companion.results.store import RecordStore
from igpt.data import DATASETS, data_card
from igpt.data.resize import CROP, SHORT
from igpt.errors import UsageError
from igpt.evaluate.linear_probe import CS
from igpt.evaluate.logistic import ITERATIONS, TOLERANCE
from igpt.evaluate.low_data import FIXED_C
from igpt.evaluate.sgd_probe import BATCH, MOMENTUM, RATES
from igpt.evaluate.sgd_probe import ITERATIONS as SGD_ITERATIONS
from igpt.measure import LEVEL
from igpt.pictures import BYTES, MEGAPIXELS
from igpt.project import Project
from igpt.train.recipes import known_models, recipe

NAMES = "published ROW, measured ROW TIER, recorded NOTEBOOK TIER KEY, live KEY, or fact NAME"


def number(name: str, store: RecordStore) -> Cell:
    """The cell of a name, one of `NAMES`; ``recorded`` is a value of a stage that only fills a figure.

    Raises UsageError for an unknown name.
    """
    kind, *words = name.split() or [""]
    match kind, words:
        case "published", [row_id]:
            row = next((row for row in published_rows() if row.row_id == row_id), None)
            if row is not None:
                return published_cell(row)
        case "measured", [row_id, tier]:
            experiment = next((e for e in experiments() if e.name == row_id), None)
            if experiment is not None and experiment.measurement(tier):
                return tier_cell(experiment, tier, store)
        case "recorded", [notebook, tier, key]:
            if tier in TIERS and (stages := TIERS[tier].figure_stages(notebook)):
                return recorded_cell(stages[0], key, store)
        case "live", [key]:
            return live_number(key, store.project)
        case "fact", [fact]:
            facts = _facts()
            if fact in facts:
                return Cell(facts[fact])
            raise UsageError(f"there is no fact {fact!r}{near_misses(fact, list(facts))}")
    raise UsageError(f"{name!r} names no number: write {NAMES}")


@cache
def _facts() -> dict[str, str]:
    """Sizes and settings of the code, as text."""
    parts = ("train", "test", "classes", "height", "validation")
    facts = {f"{name}.{part}": f"{getattr(card, part):,}" for name, card in DATASETS.items() for part in parts}
    for model in known_models():
        plan = recipe(model)
        shape = plan.shape
        facts |= {
            f"{model}.blocks": str(shape.n_layer),
            f"{model}.width": f"{shape.n_embd:,}",
            f"{model}.heads": str(shape.n_head),
            f"{model}.positions": f"{shape.n_ctx:,}",
            f"{model}.side": str(plan.side),
            f"{model}.parameters": f"{shape.parameters:,}",
            f"{model}.batch": str(plan.batch),
            f"{model}.steps": f"{plan.steps:,}",
            f"{model}.warmup": f"{plan.warmup:,}",
            f"{model}.rate": f"{plan.learning_rate:g}",
            f"{model}.colours": str(plan.palette_colours),
        }
    return facts | {
        **{
            f"{name}-l.{notebook}_{parameter}": value if isinstance(value, str) else f"{value:,}"
            for name, tier in TIERS.items()
            for notebook, overrides in tier.overrides.items()
            for parameter, value in overrides.items()
        },
        "search.steps": str(read_notebook(Project.here().notebooks, "rate_search").defaults["steps"]),
        "digits.images": f"{data_card('digits').train + data_card('digits').test:,}",
        "sgd.rates": ", ".join(f"{rate:g}" for rate in RATES),
        "sgd.batch": str(BATCH),
        "sgd.momentum": f"{MOMENTUM:g}",
        "sgd.iterations": f"{SGD_ITERATIONS:,}",
        "crop.side": str(CROP),
        "crop.short": f"{SHORT[0]} to {SHORT[1]}",
        "picture.megapixels": str(MEGAPIXELS),
        "picture.memory": f"{BYTES * MEGAPIXELS / 1000:.1f} GB",
        "published.numbers": str(sum(e.published.ours for e in experiments())),
        "released.numbers": str(sum(e.measurement("released") is not None for e in experiments())),
        "seeds": str(len(TIERS["tiny"].seeds)),
        "level": f"{100 * LEVEL:.0f} %",
        "imagenet.held-out": f"{data_card('imagenet').held_out:.0%}",
        "cifar10.held-out": f"{data_card('cifar10').held_out:.0%}",
        "probe.strengths": ", ".join(f"{strength:g}" for strength in CS),
        "probe.iterations": f"{ITERATIONS:,}",
        "probe.tolerance": f"{TOLERANCE:g}",
        "low-data.strength": f"{FIXED_C:g}",
        "cost.card": CARD,
        "cost.utilisation": f"{UTILISATION:.0%}",
        "margin": f"{100 * ACCURACY_MARGIN:g}",
    }
