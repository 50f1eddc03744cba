"""The style of all figures: sizes, colours, light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["light", "dark"]

# Each model size has one colour and one marker in every chapter and tier. The colours are Okabe and Ito's, which
# colour-blind readers can distinguish; the markers distinguish sizes in grey print.
_SIZES = {"s": ("#56b4e9", "o"), "m": ("#e69f00", "s"), "l": ("#009e73", "D")}  # colour and marker
_OTHER = ("#0072b2", "v")  # iGPT-XL, 48x48, and a user's own shapes
_BERT = ("#cc79a7", "^")
BASELINE = "#8a8f98"  # readable on white and on the book's dark background

_INK = {"light": "#1f2328", "dark": "#d7dce2"}
_GRID = {"light": "#d9dde2", "dark": "#3a4048"}


def colour(model: str) -> str:
    """The colour of a model as figures name it: iGPT-S, tiny-l, "igpt-m BERT", or a user's own."""
    return _look(model)[0]


def marker(model: str) -> str:
    """The marker of a model as figures name it."""
    return _look(model)[1]


def _look(model: str) -> tuple[str, str]:
    """Colour and marker, by objective and size."""
    return _BERT if model.endswith(" BERT") else _SIZES.get(model.rpartition("-")[2].lower(), _OTHER)


@contextmanager
def theme() -> Iterator[None]:
    """Context in which figures have the book's light theme and a transparent background."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    ink, grid = _INK["light"], _GRID["light"]
    rc = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": grid,
        "legend.frameon": False,
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "svg.hashsalt": "igpt",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    }
    with plt.rc_context(), sns.axes_style("whitegrid"), plt.rc_context(rc):  # type: ignore[arg-type]  # the keys are matplotlib's own
        yield


def svg(figure: Figure) -> str:
    """A figure as SVG, the same text in every run."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True, bbox_inches="tight")
    return stream.getvalue().decode()


def darkened(light: str) -> str:
    """A figure's SVG in the colours for a dark background; only text, axes and grid use the two colours that are replaced."""
    return light.replace(_INK["light"], _INK["dark"]).replace(_GRID["light"], _GRID["dark"])
