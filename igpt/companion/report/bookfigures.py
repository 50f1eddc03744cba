"""The figures of the book by name: which records each is drawn from, and by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.experiments.cells import TABLES
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import TIERS, Tier
from igpt.companion.report.style import Mode, save_svg, theme
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.record import Record
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.data import data_card
from igpt.errors import UsageError
from igpt.files import write_atomically
from igpt.project import Project

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SINGLE = ("palette", "samples", "completions", "search", "probe_settings")  # drawn from a single record


@dataclass(frozen=True)
class BookFigure:
    """One figure: the function of `igpt.companion.report.figures` that draws it, and the stages it needs."""

    stages: tuple[Stage, ...]
    draw: str
    one: bool = False  # drawn from a single record rather than from a list of them
    page: int | None = None  # of a record with more images than a figure shows
    whole: bool = True  # only when every record is there; else of those that are, and the caption says what is pending
    published: bool = False  # has the paper's curve, and is drawn without a record too


def _released(table: str) -> tuple[Stage, ...]:
    """The probes with which the released tier fills a table of the book."""
    members = next(each for each in TABLES if each.name == table).experiments()
    runs = [run for e in members if e.published.evaluation == "linear-probe" and (run := e.measurement("released"))]
    return tuple(dict.fromkeys(stage for run in runs for stage in run.metric.stages))


def _of(stages: tuple[Stage, ...], *, draw: str = "", whole: bool = True, page: int | None = None) -> BookFigure:
    """A figure as its first stage's protocol draws it, or by another of the protocol's functions."""
    figures = protocol(stages[0].notebook).figures
    assert not draw or draw in figures, draw
    return BookFigure(stages, draw or figures[0], (draw or figures[0]) in SINGLE, page, whole)


def _figures_of(tier: Tier) -> dict[str, BookFigure]:
    """The figures that a tier has; the small one's come with its first records."""
    small, medium, large = (tier.models[f"iGPT-{size} 32x32"] for size in "SML")

    def seeds(notebook: str, model: str = large, **given: str) -> tuple[Stage, ...]:
        if "dataset" in protocol(notebook).takes:
            given["dataset"] = tier.stands_for["cifar10"]
        if tier.weights != "trained" and "weights" in protocol(notebook).takes:
            given["weights"] = tier.weights
        return tuple(tier.stage(notebook, model=model, seed=seed, **given) for seed in tier.seeds)

    def models(notebook: str) -> tuple[Stage, ...]:
        return tuple(stage for model in (small, medium, large) for stage in seeds(notebook, model))

    whole, samples = tier.name == "tiny", tier.figure_stages("samples")
    both = tuple(
        stage
        for notebook in ("linear_probe", "fine_tune")
        for objective in ("autoregressive", "bert")
        for stage in seeds(notebook, objective=objective)
    )
    settings, searches = tier.figure_stages("probe_settings"), tier.figure_stages("rate_search")
    return {
        "losses": _of((*models("pretrain"), *seeds("pretrain", objective="bert"))),
        "losses-autoregressive": _of(models("pretrain"), whole=whole),
        "compute": _of(models("pretrain"), draw="compute", whole=whole),
        "samples": _of(samples),
        "completions": _of(samples, draw="completions"),
        "depth": _of(models("linear_probe"), whole=whole),
        "depth-bert": _of(seeds("linear_probe", objective="bert")),
        "loss-against-probe": _of(models("loss_against_probe"), whole=whole),
        "fine-tune-search": _of(seeds("fine_tune")[:1]),
        "bert": _of(both, draw="bert"),
        "low-data": _of(seeds("low_data")),
        **({"probe-settings": _of(settings)} if settings else {}),
        **({"rates": _of(searches)} if searches else {}),
    }


TINY, LAPTOP, RELEASED = (_figures_of(TIERS[name]) for name in ("tiny", "laptop", "released"))
SAMPLES = TIERS["laptop"].figure_stages("samples")
FIGURES = {
    "palette": _of((Stage.of("palette", dataset="digits", colours=16),)),
    "published-depth": BookFigure(_released("depth"), "published_depth", published=True),
    "published-loss": BookFigure(_released("loss-against-probe"), "published_loss", published=True),
    **{name: figure for name, figure in TINY.items() if name not in ("losses-autoregressive", "compute")},
    **{f"laptop-{name}": figure for name, figure in LAPTOP.items() if name != "losses"},
    **{
        f"released-{name}": RELEASED[name] for name in ("depth", "fine-tune-search", "bert", "low-data", "samples", "completions")
    },
    **{f"laptop-gallery-{n}": _of(SAMPLES, draw="completions", page=n) for n in range(1, 5)},
    **{f"laptop-gallery-samples-{n}": _of(SAMPLES, page=n) for n in (1, 2)},
}


def figure_records(name: str, store: RecordStore) -> list[Record] | None:
    """A figure's records, None when one is missing that it needs. Raises UsageError for an unknown figure."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}{near_misses(name, list(FIGURES))}")
    figure = FIGURES[name]
    found = [record for stage in figure.stages if (record := store.read(stage)) is not None]
    enough = figure.published or len(found) == len(figure.stages) or (found and not figure.whole)
    return found if enough else None


def figure_note(name: str, project: Project) -> str:
    """What a caption must add about a figure's records; nothing when they are as the checkout stands, and clean."""
    store = RecordStore(project)
    records = figure_records(name, store) or []
    notes = []
    figure = FIGURES[name]
    missing = [stage for stage in figure.stages if store.read(stage) is None]
    if missing and (records or figure.published):
        several = len({stage.parameters["model"] for stage in figure.stages}) > 1
        names = [str(s.parameters["model"]) if several else data_card(str(s.parameters["dataset"])).title for s in missing]
        notes.append(f"Pending: {', '.join(names)}.")
    if any(store.changed(stage) for stage in figure.stages):
        notes.append("Stale: its records were made before the code or its inputs changed.")
    if any(record.receipt.dirty for record in records):
        notes.append("Its records come from a checkout with uncommitted changes.")
    return " ".join(notes)


def draw_figure(name: str, project: Project, folder: Path) -> dict[Mode, Path] | None:
    """Draw a figure in light and in dark under ``folder``; None, and nothing drawn, when a record is missing."""
    records = figure_records(name, RecordStore(project))
    if records is None:
        return None
    import matplotlib.pyplot as plt

    from igpt.companion.report import figures

    spec = FIGURES[name]
    function: Callable[..., Figure] = getattr(figures, spec.draw)
    arguments: list[object] = [records[0] if spec.one else records]
    arguments += [] if spec.page is None else [spec.page]
    paths: dict[Mode, Path] = {}
    for mode in ("light", "dark"):
        paths[mode] = folder / f"{name}-{mode}.svg"
        with theme(mode):
            figure = function(*arguments)
            with write_atomically(paths[mode]) as stream:
                save_svg(figure, stream)
            plt.close(figure)
    return paths
