"""The readme's first table, against what `igpt table` prints; ``python tests/test_readme.py`` writes its rows anew."""

from __future__ import annotations

import re

from conftest import ROOT

from igpt.companion.experiments.cells import TABLES
from igpt.companion.report.tables import TIER_TITLES, result_table
from igpt.companion.results.store import RecordStore
from igpt.project import Project

README = ROOT / "README.md"
HEAD = "| number | of iGPT-L | published | OpenAI's weights | laptop tier |\n|---|---|---|---|---|\n"
SHOWN = {  # a claim that holds or fails in each of the paper's main points
    "headline-001": "linear probe, CIFAR-10",
    "headline-009": "fine-tuned, CIFAR-10",
    "low-data-055": "linear probe, 250 labels of CIFAR-10",
    "bert-110": "BERT's probe less autoregressive's, CIFAR-10",
    "figure-2-cifar10": "depth of the best layer, CIFAR-10",
}


def rows() -> str:
    """The rows as records and published numbers have them. (That code has changed since, `igpt plan` tells.)"""
    found = {}
    for table in TABLES:
        printed = result_table(table.name, RecordStore(Project(ROOT)))
        for experiment, row in zip(table.experiments(), printed.rows, strict=True):
            cells = dict(zip(printed.columns, (cell.text.removesuffix(", stale") for cell in row), strict=True))
            shown = [cells.get(name, "–") for name in ("Published", TIER_TITLES["released"], TIER_TITLES["laptop"])]
            found.setdefault(experiment.name, shown)
    return "".join(f"| `{name}` | {what} | {' | '.join(found[name])} |\n" for name, what in SHOWN.items())


def test_the_readmes_numbers_are_those_of_the_tables() -> None:
    assert HEAD + rows() + "\n" in README.read_text(), "write them anew: python tests/test_readme.py"


if __name__ == "__main__":
    text = README.read_text()
    start = text.index(HEAD) + len(HEAD)
    README.write_text(text[:start] + rows() + re.sub(r"\A(\|.*\n)*", "", text[start:]))
