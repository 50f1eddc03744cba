from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igpt.evaluate.lbfgs import MEMORY, Minima, Objective, minimise

TIGHT = 1e-14


def bowls(count: int, size: int, *, condition: float, seed: int) -> tuple[Objective, torch.Tensor]:
    """Quadratics of the given condition number, each with its own axes, and their lowest points (where they are -1)."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64, generator=generator))[0]
    curvatures = torch.logspace(0, np.log10(condition), size, dtype=torch.float64)
    hessians = axes * curvatures @ axes.mT
    lowest = torch.randn(count, size, dtype=torch.float64, generator=generator)

    def objective(points: torch.Tensor, live: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        away = points - lowest[live]
        slopes = (hessians[live] @ away[:, :, None])[:, :, 0]
        return (away * slopes).sum(1) / 2 - 1, slopes

    return objective, lowest


def at_origin(count: int, size: int) -> torch.Tensor:
    return torch.zeros(count, size, dtype=torch.float64)


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 5), size=st.integers(1, 25), power=st.floats(0, 6), seed=st.integers(0, 10**6))
def test_the_lowest_point_of_a_bowl_is_found_whatever_its_condition(count: int, size: int, power: float, seed: int) -> None:
    objective, lowest = bowls(count, size, condition=10**power, seed=seed)
    found = minimise(objective, at_origin(count, size), tolerance=TIGHT, iterations=3000)
    assert found.converged.all()
    # An objective within the tolerance of -1 is this near, since no curvature is below 1; ten times, as H is an estimate.
    assert found.values.numpy() == pytest.approx(-1, abs=1e-10)
    torch.testing.assert_close(found.points, lowest, rtol=0, atol=1e-4)


def two_loops(pairs: list[tuple[torch.Tensor, torch.Tensor]], gradient: torch.Tensor) -> torch.Tensor:
    """Liu and Nocedal's recursion, step by step, for one problem."""
    q, steps = gradient.clone(), []
    for s, y in reversed(pairs):
        steps.append(s @ q / (s @ y))
        q -= steps[-1] * y
    s, y = pairs[-1]
    q *= s @ y / (y @ y)
    for (s, y), a in zip(pairs, reversed(steps), strict=True):
        q += s * (a - y @ q / (s @ y))
    return -q


@pytest.mark.parametrize("iterations", [1, 3, MEMORY, MEMORY + 1, 2 * MEMORY + 5])
def test_directions_are_those_of_the_two_loop_recursion(iterations: int) -> None:
    objective, _ = bowls(1, 60, condition=1e5, seed=1)
    reached = [minimise(objective, at_origin(1, 60), tolerance=0, iterations=count).points[0] for count in range(iterations + 2)]
    slopes = [objective(x[None], [0])[1][0] for x in reached[:-1]]
    pairs = [(reached[i + 1] - reached[i], slopes[i + 1] - slopes[i]) for i in range(iterations)]
    expected = two_loops(pairs[-MEMORY:], slopes[-1])
    after = reached[-1] - reached[-2]
    torch.testing.assert_close(after / after.norm(), expected / expected.norm(), rtol=1e-5, atol=1e-7)


def test_a_problem_ends_where_it_ends_alone_however_long_the_others_take() -> None:
    parts = [bowls(1, 12, condition=c, seed=s) for c, s in ((1, 0), (1e5, 1), (30, 2))]

    def together(points: torch.Tensor, live: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        found = [parts[problem][0](points[place : place + 1], [0]) for place, problem in enumerate(live)]
        return torch.cat([value for value, _ in found]), torch.cat([slope for _, slope in found])

    found = minimise(together, at_origin(3, 12), tolerance=TIGHT, iterations=500)
    for place, (objective, _) in enumerate(parts):
        alone = minimise(objective, at_origin(1, 12), tolerance=TIGHT, iterations=500)
        torch.testing.assert_close(found.points[place], alone.points[0], rtol=0, atol=1e-6)
    assert found.iterations[0] < found.iterations[2] < found.iterations[1]


def test_a_step_that_is_far_too_long_or_far_too_short_is_mended() -> None:
    """Cosh's curvature grows by orders of magnitude, and the scaled ones begin far from their unit step."""
    scales = torch.tensor([[1e-4], [1.0], [1e4]], dtype=torch.float64)

    def objective(points: torch.Tensor, live: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        away = points - 5
        scale = scales[live]
        return (scale * torch.cosh(away)).sum(1), scale * torch.sinh(away)

    found = minimise(objective, at_origin(3, 4), tolerance=1e-15, iterations=200)
    assert found.converged.all()
    torch.testing.assert_close(found.points[1:], torch.full((2, 4), 5.0, dtype=torch.float64), rtol=0, atol=1e-5)


def test_too_few_iterations_and_an_objective_without_a_lower_point_have_not_converged() -> None:
    objective, _ = bowls(2, 30, condition=1e5, seed=3)
    short: Minima = minimise(objective, at_origin(2, 30), tolerance=TIGHT, iterations=4)
    assert short.converged.tolist() == [False, False]
    assert short.iterations.tolist() == [4, 4]
    torch.testing.assert_close(short.values, objective(short.points, [0, 1])[0])

    def wrong(points: torch.Tensor, live: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = objective(points, live)
        return value, -slope  # every step goes up

    stuck = minimise(wrong, at_origin(2, 30), tolerance=TIGHT, iterations=50)
    assert stuck.converged.tolist() == [False, False]
    torch.testing.assert_close(stuck.points, at_origin(2, 30))
