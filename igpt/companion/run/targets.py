"""From words to stages: experiments, tables, or stages by name."""

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


def find_stages(targets: list[str], tier: str | None, project: Project) -> list[Stage]:
    """The stages of the targets in a tier; all of the tier's when there are none.

    Raises UsageError for an unknown target, naming near misses, and for one without a run in the tier.
    """
    if not targets:
        return declared_stages(tier or DEFAULT_TIER)
    found: dict[Stage, None] = {}
    for target in targets:
        found |= dict.fromkeys(_stages_of(target, tier, project))
    return list(found)


def _stages_of(target: str, tier: str | None, project: Project) -> list[Stage]:
    """The stages of one word."""
    by_name = {e.name: e for e in experiments()}
    tables = {table.name: table.experiments() for table in TABLES}
    notebooks = sorted(path.stem for path in project.notebooks.glob("*.ipynb"))
    if target in by_name or target in tables:
        members = tables.get(target) or (by_name[target],)
        for candidate in [tier] if tier else TIERS:
            stages = [s for e in members if (run := e.measurement(candidate)) for s in run.stages()]
            if stages:
                return stages
        ours = [e.published for e in members if e.published.ours]
        places = [TIERS[name] for name in ([tier] if tier else TIERS) if name in TIERS]
        nothing = f"{target} has nothing to run{f' in tier {tier}' if tier else ''}"
        if reasons := [why for row in ours for place in places if (why := why_not(row, place))]:
            raise UsageError(f"{nothing}: {reasons[0]}")
        others = sorted({run.tier for e in members for run in e.measurements})
        has = f"its runs are in tier {' and '.join(others)}" if others else "it is another system's, or has no run declared"
        raise UsageError(f"{nothing}: {has}")
    head, *words = Stage.words(target)
    if head in notebooks:
        return [resolve_weights(project, Stage.of(head, **parameters_of(project, head, words)))]
    known = list(dict.fromkeys([*tables, *by_name, *notebooks]))  # a table and a notebook may share a name
    same = next((name for name in by_name if _plain(name) == _plain(target)), None)
    near = f"; did you mean {same}?" if same else near_misses(target, known)
    raise UsageError(f"there is no experiment, table or notebook {target!r}{near}")


def _plain(name: str) -> str:
    """A name whose number is written without zeros before it."""
    return re.sub(r"-0+(?=\d+$)", "-", name)


def parameters_of(project: Project, notebook: str, words: list[str]) -> dict[str, Literal]:
    """Parameters from ``name=value`` words, each read as its default's type."""
    defaults = read_notebook(project.notebooks, notebook).defaults
    given: dict[str, Literal] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UsageError(f"parameters are given as NAME=VALUE, not as {word!r}")
        given[name] = _read_as(defaults.get(name), text)
    return given


def _read_as(default: Literal | None, text: str) -> Literal:
    """``text`` as the default's type where it reads as one, else as it is; the plan refuses a wrong type."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}.get(text.lower(), text)
        if isinstance(default, int | float):
            return type(default)(text)
    except ValueError:
        pass
    return text
