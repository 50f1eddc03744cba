"""Find the stages of a target: an experiment, a table, or a notebook with parameters."""

from __future__ import annotations

import re

from igpt.companion.experiments.cells import TABLES, declared_stages, experiments, why_not
from igpt.companion.experiments.tiers import TIERS
from igpt.companion.results.notebooks import near_misses, read_notebook
from igpt.companion.run.own_weights import resolve_weights
from igpt.companion.stage import Literal, Stage
from igpt.errors import UsageError
from igpt.project import Project

DEFAULT_TIER = next(iter(TIERS))  # the smallest
ZEROS = re.compile(r"-0+(?=\d+$)")  # leading zeros of an experiment's number


def find_stages(targets: list[str], tier: str | None, project: Project) -> list[Stage]:
    """The stages of the targets in a tier, by default the smallest tier that has them; without targets, of the whole tier.

    Raises UsageError for an unknown target, with near misses, and for a target without a run in the tier.
    """
    if not targets:
        return declared_stages(tier or DEFAULT_TIER)
    return list(dict.fromkeys(stage for target in targets for stage in _stages_of(target, tier, project)))


def _stages_of(target: str, tier: str | None, project: Project) -> list[Stage]:
    """The stages of one target, see `find_stages`."""
    groups = {e.name: [e] for e in experiments()} | {table.name: list(table.experiments()) for table in TABLES}
    if target not in groups:
        notebooks = sorted(path.stem for path in project.notebooks.glob("*.ipynb"))
        notebook, *words = Stage.words(target)
        if notebook in notebooks:
            return [resolve_weights(project, Stage.of(notebook, **parameters_of(project, notebook, words)))]
        known = list(dict.fromkeys([*groups, *notebooks]))  # a table and a notebook may share a name
        equal_names = [name for name in known if ZEROS.sub("-", name) == ZEROS.sub("-", target)]
        raise UsageError(f"there is no experiment, table or notebook {target!r}{near_misses(target, equal_names or known)}")
    tiers = [tier] if tier else list(TIERS)
    for name in tiers:
        if stages := [s for e in groups[target] if (run := e.measurement(name)) for s in run.stages()]:
            return stages
    nothing = f"{target} has nothing to run{f' in tier {tier}' if tier else ''}"
    rows = [e.published for e in groups[target] if e.published.ours]
    for row in rows:
        for name in tiers:
            if name in TIERS and (why := why_not(row, TIERS[name])):
                raise UsageError(f"{nothing}: {why}")
    other_tiers = sorted({run.tier for e in groups[target] for run in e.measurements})
    reason = (
        f"its runs are in tier {' and '.join(other_tiers)}" if other_tiers else "it is another system's, or has no run declared"
    )
    raise UsageError(f"{nothing}: {reason}")


def parameters_of(project: Project, notebook: str, words: list[str]) -> dict[str, Literal]:
    """Parameters from ``name=value`` words, each converted to the type of the notebook's default."""
    defaults = read_notebook(project.notebooks, notebook).defaults
    given: dict[str, Literal] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UsageError(f"parameters are given as NAME=VALUE, not as {word!r}")
        given[name] = _convert(text, defaults.get(name))
    return given


def _convert(text: str, default: Literal | None) -> Literal:
    """``text`` converted to the default's type if possible, else unchanged: signing refuses a wrong type."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}.get(text.lower(), text)
        if isinstance(default, int | float):
            return type(default)(text)
    except ValueError:
        pass
    return text
