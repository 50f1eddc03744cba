"""The published numbers with their sources and certainty, from ``published.csv`` and ``curves.csv``.

The sources are the post, the paper (version 2) and the released code; figures 2 and 3 are digitised. Both files give the
place of every number in its source. Some numbers are from memory and are marked as such.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """One published number, as its source prints it."""

    table: str
    row_id: str
    method: str
    model: str
    resolution: str
    features: str
    params_m: str
    dataset: str
    evaluation: str
    metric: str
    value: str
    unit: str
    pretrain_data: str
    labels_used: str
    source: str
    source_place: str
    certainty: str
    measure: str = ""  # a name in `igpt.companion.experiments.measures`; empty if not measured

    @property
    def number(self) -> float:
        """The value in the unit of records: accuracies and their differences are fractions."""
        return float(self.value) / (100 if self.unit in ("percent", "points") else 1)

    @property
    def ours(self) -> bool:
        """Whether the row is about Image GPT, in the reproduced version of the paper."""
        return self.method.startswith("iGPT") and self.table != "version-1"


@dataclass(frozen=True)
class CurvePoint:
    """One digitised point; ``y`` is None below the plotted range."""

    curve: str
    model: str
    dataset: str
    x: float
    y: float | None
    uncertainty: float


@cache
def published_rows() -> tuple[Published, ...]:
    """All published numbers, in the file's order."""
    return tuple(Published(**row) for row in _rows("published.csv"))


@cache
def curve_points() -> tuple[CurvePoint, ...]:
    """The digitised points of figures 2 and 3."""
    return tuple(
        CurvePoint(
            row["curve"],
            row["model"],
            row["dataset"],
            float(row["x"]),
            float(row["y"]) if row["y"] else None,
            float(row["y_uncertainty"] or 0),
        )
        for row in _rows("curves.csv")
    )


def _rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file in this package, as dicts by column."""
    return list(csv.DictReader(io.StringIO(files("igpt.companion.experiments").joinpath(name).read_text("utf-8"))))
