"""The figures of the book by name: which records each is drawn from, and by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.errors import UsageError
from igpt.experiments import rate_searches, samples_of
from igpt.experiments.cells import DATASET, EFFORT, SEEDS
from igpt.files import write_atomically
from igpt.project import Project
from igpt.report.style import Mode, save_svg, theme
from igpt.results.notebooks import near_misses
from igpt.results.record import Record
from igpt.results.store import RecordStore
from igpt.stage import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class BookFigure:
    """One figure: the function of `igpt.report.figures` that draws it, and the stages it needs."""

    draw: str
    stages: tuple[Stage, ...]
    one: bool = False  # drawn from a single record rather than from a list of them
    page: int | None = None  # of a record with more images than a figure shows
    whole: bool = True  # only when every record is there; else of those that are, and the caption says what is pending


def _figures_of(tier: str) -> dict[str, BookFigure]:
    """The figures that a tier has; the small one's come with its first records."""
    large, dataset = f"{tier}-l", DATASET[tier]["cifar10"]

    def seeds(notebook: str, model: str = large, **given: str) -> tuple[Stage, ...]:
        if notebook != "pretrain":
            given["dataset"] = dataset
        effort = EFFORT.get((tier, notebook), {})
        return tuple(Stage.of(notebook, model=model, seed=seed, **given, **effort) for seed in SEEDS[tier])

    def models(notebook: str) -> tuple[Stage, ...]:
        return tuple(stage for size in "sml" for stage in seeds(notebook, f"{tier}-{size}"))

    samples = (samples_of(tier),)
    both = tuple(
        stage
        for notebook in ("linear_probe", "fine_tune")
        for objective in ("autoregressive", "bert")
        for stage in seeds(notebook, objective=objective)
    )
    settings = (Stage.of("probe_settings", model=large, dataset=dataset),)
    return {
        "losses": BookFigure("losses", (*models("pretrain"), *seeds("pretrain", objective="bert"))),
        "losses-autoregressive": BookFigure("losses", models("pretrain"), whole=tier == "tiny"),
        "compute": BookFigure("compute", models("pretrain"), whole=tier == "tiny"),
        "samples": BookFigure("samples", samples, one=True),
        "completions": BookFigure("completions", samples, one=True),
        "depth": BookFigure("depth", models("linear_probe"), whole=tier == "tiny"),
        "depth-bert": BookFigure("depth", seeds("linear_probe", objective="bert")),
        "loss-against-probe": BookFigure("loss_against_probe", models("loss_against_probe"), whole=tier == "tiny"),
        "fine-tune-search": BookFigure("search", seeds("fine_tune")[:1], one=True),
        "bert": BookFigure("bert", both),
        "low-data": BookFigure("low_data", seeds("low_data")),
        "probe-settings": BookFigure("probe_settings", settings, one=True),
        "rates": BookFigure("rate_search", rate_searches(tier)),
    }


FIGURES = {
    "palette": BookFigure("palette", (Stage.of("palette", dataset="digits", colours=16),), one=True),
    "published-depth": BookFigure("published_depth", ()),
    **{name: figure for name, figure in _figures_of("tiny").items() if name not in ("losses-autoregressive", "rates", "compute")},
    **{f"laptop-{name}": figure for name, figure in _figures_of("laptop").items() if name != "losses"},
    **{f"laptop-gallery-{n}": BookFigure("completions", (samples_of("laptop"),), one=True, page=n) for n in range(1, 5)},
    **{f"laptop-gallery-samples-{n}": BookFigure("samples", (samples_of("laptop"),), one=True, page=n) for n in (1, 2)},
}


def figure_records(name: str, store: RecordStore) -> list[Record] | None:
    """A figure's records, None when one is missing that it needs. Raises UsageError for an unknown figure."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}{near_misses(name, list(FIGURES))}")
    figure = FIGURES[name]
    found = [record for stage in figure.stages if (record := store.read(stage)) is not None]
    enough = len(found) == len(figure.stages) or (found and not figure.whole)
    return found if enough else None


def figure_note(name: str, project: Project) -> str:
    """What a caption must add about a figure's records; nothing when they are as the checkout stands, and clean."""
    store = RecordStore(project)
    records = figure_records(name, store) or []
    notes = []
    if records and (missing := [s for s in FIGURES[name].stages if store.read(s) is None]):
        notes.append(f"Pending: {', '.join(str(stage.parameters['model']) for stage in missing)}.")
    if any(store.changed(stage) for stage in FIGURES[name].stages):
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

    from igpt.report import figures

    spec = FIGURES[name]
    function: Callable[..., Figure] = getattr(figures, spec.draw)
    arguments: list[object] = [] if not spec.stages else [records[0] if spec.one else records]
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
