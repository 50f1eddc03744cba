"""The figures of the book by name: the records that each is drawn from, and the function that draws it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from igpt.companion.experiments.cells import TABLES
from igpt.companion.experiments.protocols import protocol
from igpt.companion.experiments.tiers import TIERS, Tier
from igpt.companion.report.style import Mode, darkened, svg, theme
from igpt.companion.results.notebooks import near_misses
from igpt.companion.results.record import Record
from igpt.companion.results.store import RecordStore
from igpt.companion.stage import Stage
from igpt.data import data_card
from igpt.errors import UsageError
from igpt.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LIBRARIES = ("matplotlib", "seaborn", "pandas", "numpy", "pillow")
SINGLE = ("palette", "samples", "completions", "search", "probe_settings", "own_pictures")  # drawn from a single record


@dataclass(frozen=True)
class BookFigure:
    """One figure: the function of `igpt.companion.report.figures` that draws it, and the stages it needs."""

    stages: tuple[Stage, ...]
    draw: str
    one: bool = False  # drawn from a single record rather than from a list of them
    page: int | None = None  # for a record with more images than a figure shows
    whole: bool = True  # drawn only if no record is missing; else from the others, and the caption lists what is pending
    published: bool = False  # shows the paper's curve, and is drawn even without a record


def _released(table: str) -> tuple[Stage, ...]:
    """The linear probes of the released tier in a table of the book."""
    members = next(declared for declared in TABLES if declared.name == table).experiments()
    measurements = [m for e in members if e.published.evaluation == "linear-probe" and (m := e.measurement("released"))]
    return tuple(dict.fromkeys(stage for m in measurements for stage in m.metric.stages))


def _of(stages: tuple[Stage, ...], *, draw: str = "", whole: bool = True, page: int | None = None) -> BookFigure:
    """A figure drawn by a function of its first stage's protocol, by default the first function."""
    figures = protocol(stages[0].notebook).figures
    assert not draw or draw in figures, draw
    return BookFigure(stages, draw or figures[0], (draw or figures[0]) in SINGLE, page, whole)


def _figures_of(tier: Tier) -> dict[str, BookFigure]:
    """A tier's figures by name; those of the small tier will be added with its first records."""
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
    settings, searches, own = (tier.figure_stages(name) for name in ("probe_settings", "rate_search", "own_pictures"))
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
        **({"own-pictures": _of(own)} if own else {}),
    }


TINY, LAPTOP, RELEASED = (_figures_of(TIERS[name]) for name in ("tiny", "laptop", "released"))
SAMPLES = TIERS["laptop"].figure_stages("samples")
FIGURES = {
    "palette": _of((Stage.of("palette", dataset="digits", colours=16),)),
    "published-depth": BookFigure(_released("depth"), "published_depth", published=True),
    "published-loss": BookFigure(_released("loss-against-probe"), "published_loss", published=True),
    **{name: figure for name, figure in TINY.items() if name not in ("losses-autoregressive", "compute", "own-pictures")},
    **{f"laptop-{name}": figure for name, figure in LAPTOP.items() if name != "losses"},
    **{
        f"released-{name}": RELEASED[name] for name in ("depth", "fine-tune-search", "bert", "low-data", "samples", "completions")
    },
    **{f"laptop-gallery-{n}": _of(SAMPLES, draw="completions", page=n) for n in range(1, 5)},
    **{f"laptop-gallery-samples-{n}": _of(SAMPLES, page=n) for n in (1, 2)},
}


def figure_records(name: str, store: RecordStore) -> list[Record] | None:
    """A figure's records; None when a required one is missing. Raises UsageError for an unknown figure."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}{near_misses(name, list(FIGURES))}")
    figure = FIGURES[name]
    records = [record for stage in figure.stages if (record := store.read(stage)) is not None]
    enough = figure.published or len(records) == len(figure.stages) or (records and not figure.whole)
    return records if enough else None


def figure_note(name: str, store: RecordStore) -> str:
    """What the caption adds about a figure's records; empty when none is missing, stale or from a dirty checkout."""
    records, figure, notes = figure_records(name, store) or [], FIGURES[name], []
    missing = [stage.parameters for stage in figure.stages if store.read(stage) is None]
    if missing and (records or figure.published):
        several = len({stage.parameters["model"] for stage in figure.stages}) > 1
        names = [str(p["model"]) if several else data_card(str(p["dataset"])).title for p in missing]
        notes.append(f"Pending: {', '.join(names)}.")
    if any(store.changed(stage) for stage in figure.stages):
        notes.append("Stale: its records were made before the code or its inputs changed.")
    if any(record.receipt.dirty for record in records):
        notes.append("Its records come from a checkout with uncommitted changes.")
    return " ".join(notes)


def draw_figure(name: str, store: RecordStore, folder: Path) -> dict[Mode, Path] | None:
    """Draw a figure in light and in dark under ``folder``, unless it is there and up to date.

    Returns None, and removes an older drawing, when a required record is missing.
    """
    records = figure_records(name, store)
    paths: dict[Mode, Path] = {mode: folder / f"{name}-{mode}.svg" for mode in ("light", "dark")}
    inputs = folder / f".{name}.sha256"  # digest of records and code; written after the drawing, removed before it
    key = _digest(records) if records is not None else ""
    if records is not None and inputs.is_file() and inputs.read_text() == key and all(map(Path.is_file, paths.values())):
        return paths
    for path in (inputs, *paths.values()):
        path.unlink(missing_ok=True)
    if records is None:
        return None
    import matplotlib.pyplot as plt

    from igpt.companion.report import figures

    spec = FIGURES[name]
    function: Callable[..., Figure] = getattr(figures, spec.draw)
    page = [] if spec.page is None else [spec.page]
    with theme():
        figure = function(records[0] if spec.one else records, *page)
        light = svg(figure)
        plt.close(figure)
    write_text(paths["light"], light)
    write_text(paths["dark"], darkened(light))
    write_text(inputs, key)
    return paths


def _digest(records: Sequence[Record]) -> str:
    """SHA-256 of records, and of everything that their drawing depends on."""
    content = [*(record.model_dump_json() for record in records), drawing_digest()]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


@cache
def drawing_digest() -> str:
    """SHA-256 of the package's source and data, and of the versions of the libraries that draw."""
    package = Path(__file__).parents[2]
    digest = hashlib.sha256(" ".join(version(name) for name in LIBRARIES).encode())
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".csv")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
