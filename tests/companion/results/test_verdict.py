from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_record import record

from igpt.companion.criteria import Criterion, Metric
from igpt.companion.results.record import Record, Value
from igpt.companion.results.verdict import judge, outcome
from igpt.companion.stage import Stage
from igpt.measure import mean_interval

STAGES = tuple(Stage.of("linear_probe", seed=seed) for seed in range(3))
VALUE, OTHER = Metric(STAGES, "value"), Metric(STAGES, "other")


def store(*rows: tuple[float, float]) -> dict[Stage, Record]:
    return {stage: record(value=value, other=other) for stage, (value, other) in zip(STAGES, rows, strict=False)}


def word(criterion: Criterion, *rows: tuple[float, float], metric: Metric = VALUE, published: float = 0.9) -> str:
    return judge(metric, criterion, store(*rows).get, published=published).word


ABOVE, BELOW = Criterion("above", "more", OTHER), Criterion("below", "less", OTHER)
CLEAR = ((0.9, 0.5), (0.91, 0.5), (0.92, 0.5))
MIXED = ((0.9, 0.5), (0.5, 0.6), (0.6, 0.61))


@pytest.mark.parametrize(
    ("criterion", "rows", "expected"),
    [
        (ABOVE, CLEAR, "reproduced"),
        (BELOW, CLEAR, "differs"),
        (ABOVE, MIXED, "undecided"),
        (BELOW, MIXED, "undecided"),
        (ABOVE, tuple((b, a) for a, b in CLEAR), "differs"),
        (BELOW, tuple((b, a) for a, b in CLEAR), "reproduced"),
        (ABOVE, ((0.5, 0.5),) * 3, "undecided"),
        (ABOVE, CLEAR[:2], "pending"),
        (ABOVE, (), "pending"),
    ],
)
def test_a_side_is_decided_by_the_interval_over_seeds(
    criterion: Criterion, rows: tuple[tuple[float, float], ...], expected: str
) -> None:
    assert word(criterion, *rows) == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3))
def test_above_and_below_never_agree(rows: list[tuple[float, float]]) -> None:
    words = {word(ABOVE, *rows), word(BELOW, *rows)}
    assert words in ({"undecided"}, {"reproduced", "differs"})


def test_a_value_matches_within_its_margin() -> None:
    criterion = Criterion("matches", "close", margin=0.005)
    rows = ((0.890, 0), (0.895, 0), (0.900, 0))
    assert word(criterion, *rows, published=0.8995) == "reproduced"
    assert word(criterion, *rows, published=0.901) == "differs"


def test_every_seed_must_lie_inside() -> None:
    criterion = Criterion("inside", "inside")
    assert word(criterion, (0.5, 0), (0.1, 0), (0.9, 0)) == "reproduced"
    assert word(criterion, (0.5, 0), (0.0, 0), (0.9, 0)) == "differs"
    assert word(criterion, (0.5, 0), (1.0, 0), (0.9, 0)) == "differs"


def test_a_difference_is_taken_seed_by_seed() -> None:
    difference = Metric(STAGES, "value", minus=OTHER)
    found = outcome(difference, store(*CLEAR).get)
    assert found is not None
    assert found.values == pytest.approx((0.4, 0.41, 0.42))
    assert (found.mean, found.low, found.high) == pytest.approx(mean_interval([0.4, 0.41, 0.42]))
    assert word(Criterion("above", "more"), *CLEAR, metric=difference) == "reproduced"


def test_the_sentence_carries_the_difference_and_the_seeds() -> None:
    verdict = judge(VALUE, ABOVE, store(*CLEAR).get, published=0.9)
    assert verdict.sentence.startswith("more: difference +41.0 points [+38.5, +43.5]")
    assert verdict.sentence.endswith("over 3 seeds")


def single(**bounds: tuple[float, float, float] | tuple[float]) -> Callable[[Stage], Record]:
    """The record of a single seed, whose values have the intervals given, or none."""
    found = record()
    values = {
        name: Value(value=v[0], unit="fraction", **({"low": v[1], "high": v[2]} if len(v) == 3 else {}))
        for name, v in bounds.items()
    }
    return lambda stage: found.model_copy(update={"values": values})


ONE_VALUE, ONE_OTHER = Metric(STAGES[:1], "value"), Metric(STAGES[:1], "other")


@pytest.mark.parametrize(
    ("value", "other", "expected"),
    [
        ((0.9, 0.89, 0.91), (0.8, 0.79, 0.81), "reproduced"),
        ((0.7, 0.69, 0.71), (0.8, 0.79, 0.81), "differs"),
        ((0.81, 0.79, 0.83), (0.8, 0.78, 0.82), "undecided"),
        ((0.9, 0.89, 0.91), (0.8,), "pending"),
        ((0.9,), (0.8, 0.79, 0.81), "pending"),
        ((0.9,), (0.8,), "pending"),
    ],
)
@pytest.mark.parametrize("as_minus", [False, True])
def test_with_one_seed_the_values_own_intervals_decide_and_without_one_the_claim_is_pending(
    value: tuple[float, float, float] | tuple[float],
    other: tuple[float, float, float] | tuple[float],
    expected: str,
    as_minus: bool,
) -> None:
    metric = Metric(STAGES[:1], "value", minus=ONE_OTHER) if as_minus else ONE_VALUE
    criterion = Criterion("above", "more") if as_minus else Criterion("above", "more", ONE_OTHER)
    verdict = judge(metric, criterion, single(value=value, other=other), published=0.9)
    assert verdict.word == expected
    if expected == "pending":
        bare = "value" if len(value) == 1 else "other"
        assert verdict.sentence == f"{bare} has no interval, since its record is of an older version: igpt run {STAGES[0].name}"
    else:
        assert "[" in verdict.sentence


def test_a_record_from_before_a_value_was_measured_leaves_it_pending() -> None:
    assert word(Criterion("shown", "shown"), *CLEAR, metric=Metric(STAGES, "newer")) == "pending"
    assert word(Criterion("above", "more", Metric(STAGES, "newer")), *CLEAR) == "pending"
