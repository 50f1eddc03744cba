"""Plans as text: their cells and stages, the reasons to run them, and their costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from igpt.companion.criteria import Measurement
from igpt.companion.experiments.cells import experiments
from igpt.companion.experiments.costs import Cost, lacking, stage_cost, with_parents
from igpt.companion.experiments.machines import GIB, Card
from igpt.companion.results.plan import Plan, State
from igpt.companion.results.signature import Signer
from igpt.companion.stage import Stage
from igpt.text import counted, rounded, visible

NAME = 34  # characters of a stage's name in a table


def plan_text(plan: Plan, signer: Signer, *, why: bool) -> str:
    """One line per cell whose stages are all in the plan, one line per stage, and the counts.

    A cell has the state of its worst stage: missing, stale, or fresh. ``why`` adds to each stage the inputs that
    changed since its record.
    """
    states: tuple[State, ...] = ("fresh", "stale", "missing")  # the worst last
    width = max((len(planned.stage.name) for planned in plan), default=0)
    lines = ["Cells"]
    for name, measurement in _cells(plan, signer):
        worst = max((plan[signer.canonical(stage)].state for stage in measurement.stages()), key=states.index)
        lines.append(f"{worst:8} {measurement.tier:6} {name}")
    lines += ["", "Stages"]
    for planned in plan:
        lines.append(f"{planned.state:8} {planned.stage.name:{width}}{'  ' + visible(planned.why) if why else ''}".rstrip())
    counts = [f"{sum(p.state == state for p in plan)} {state}" for state in states]
    return "\n".join([*lines, "", f"{counted(len(plan), 'stage')}: {', '.join(counts)}; nothing was run"])


def _cells(plan: Plan, signer: Signer) -> Iterator[tuple[str, Measurement]]:
    """The experiments and measurements whose stages are all in the plan."""
    stages = {planned.stage for planned in plan}
    for experiment in experiments():
        for measurement in experiment.measurements:
            if stages.issuperset(signer.canonical(stage) for stage in measurement.stages()):
                yield experiment.name, measurement


def cost_text(plan: Plan, signer: Signer, cards: Sequence[Card]) -> str:
    """Costs of each cell of the plan with all its dependencies, of each stage alone, and of the whole plan.

    cards : one column of hours each; the first is the one whose memory use is shown
    """
    from tabulate import tabulate

    costs = {p.stage: [stage_cost(p.in_full, card) for card in cards] for p in plan}
    cells = {}
    for name, measurement in _cells(plan, signer):
        needed = frozenset(signer.canonical(stage) for stage in with_parents(measurement.stages(), signer.in_full))
        cells[name, needed] = _numbers([costs[stage] for stage in needed], cards)
    stages = [(_short(stage), *_numbers([on_cards], cards)) for stage, on_cards in costs.items()]
    whole = ("all that a machine holds", *_numbers(list(costs.values()), cards, partly=True))
    memory = "Mem GiB" if cards[0].is_processor else "Card GiB"
    heads = ("Get GB", "Disk GB", memory, *(card.title for card in cards))
    tables = [
        tabulate(rows, (first, *heads), disable_numparse=True, colalign=("left", *["right"] * len(heads)))
        for first, rows in (
            ("Cell, with its dependencies", [(name, *numbers) for (name, _), numbers in cells.items()]),
            ("Stage, alone", [*stages, whole]),
        )
        if rows
    ]
    fresh = sum(planned.state == "fresh" for planned in plan)
    return "\n".join(
        [
            *(f"{table}\n" for table in tables),
            "Hours on one card; a dash where its memory is too small. Downloads count once in the whole; + means at least.",
            *map(_rates, cards),
            f"{counted(len(plan), 'stage')}, {fresh} finished; nothing was run",
        ]
    )


def _numbers(each: Sequence[Sequence[Cost]], cards: Sequence[Card], *, partly: bool = False) -> list[str]:
    """Download, disk, memory on the first card, and hours on every card, of stages that run one after the other.

    partly : whether a card too small for some stages gets the hours of the others, rather than a dash
    """
    total = sum((costs[0] for costs in each), Cost())
    hours = []
    for index, card in enumerate(cards):
        fitting = [costs[index].hours for costs in each if not lacking(costs[index], card)]
        hours.append(rounded(sum(fitting), least=0.01) if partly or len(fitting) == len(each) else "-")
    return [
        f"{total.to_fetch / 1e9:,.1f}{'' if total.exact else '+'}" if total.to_fetch else "-",
        f"{total.room / 1e9:,.1f}",
        f"{(total.memory if cards[0].is_processor else total.card) / GIB:,.1f}",
        *hours,
    ]


def _rates(card: Card) -> str:
    """The source of a card's rates, and its rate for losses and samples."""
    note = ", not measured"
    if card.measured:
        note = "; other work on this machine makes this too slow" if card.title == "here" else ""
    return f"{card.title}: {card.source}{note}; losses and samples in float32, at {card.rates.single / 1e12:.2g} TFLOP/s"


def _short(stage: Stage) -> str:
    """A stage's name in a table, without the parameters that all stages of a tier share."""
    leading = ("model", "dataset", "objective", "step")
    parameters = {name: value for name, value in stage.given if (name, value) not in (("seed", 0), ("weights", "released"))}
    words = [stage.notebook, *(str(parameters.pop(name)) for name in leading if name in parameters)]
    text = " ".join([*words, *(f"{name}={value}" for name, value in parameters.items())])
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"
