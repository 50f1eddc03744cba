"""L-BFGS for many independent convex problems side by side on one torch device.

The direction is that of the two-loop recursion (Liu and Nocedal, 1989) in its compact form (Byrd, Nocedal and Schnabel, 1994,
theorem 2.2): a few batched products and triangular solves instead of 40 sequential steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 20  # latest pairs of steps and gradient changes in the history
TRIALS = 40  # of a line search; nearly all searches take the first
LEAST, MOST = 0.1, 0.9  # Wolfe's constants: the fraction of the initial slope that a step must gain, and that may remain after it
ROUNDING = 1e-14  # relative error of an objective in float64

# Objectives (p,) and gradients (p, n) at points (p, n) of the problems with these ascending indices.
Objective = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Minima:
    """Results of P problems in n unknowns: float64 (P, n) points and (P,) values, bool (P,) converged, int64 (P,) iterations."""

    points: Tensor
    values: Tensor
    converged: Tensor
    iterations: Tensor


def minimise(objective: Objective, start: Tensor, *, tolerance: float, iterations: int) -> Minima:
    """The minima of smooth, strictly convex objectives, from float64 starts (P, n).

    A problem has converged when its last step lowered its objective, and a full further step is expected to lower it, by at
    most ``tolerance`` times max(|objective|, 1). The expected decrease is g'Hg / 2, with the gradient g and the current
    estimate H of the inverse Hessian, which may be far off in the first steps. Converged problems leave the batch. A problem
    whose line search finds no lower point, or that runs out of ``iterations``, ends there without converging.
    """
    count, device = len(start), start.device
    x, live = start, list(range(count))  # points and indices of the problems still running
    value, gradient = objective(x, live)
    stuck = torch.zeros(count, dtype=torch.bool, device=device)
    minima = Minima(x.clone(), value.clone(), stuck.clone(), torch.zeros(count, dtype=torch.int64, device=device))
    gained = torch.full_like(value, torch.inf)
    history = _History.empty(start)
    for iteration in range(iterations + 1):
        direction = history.direction(gradient)
        slope = (gradient * direction).sum(1)
        threshold = tolerance * value.abs().clamp(min=1)
        # At the optimum a line search fails by rounding alone.
        converged = (-slope / 2 <= threshold) & ((gained <= threshold) | stuck)
        ended = converged | stuck | (iteration == iterations)
        if bool(ended.any()):
            finished, keep = torch.tensor(live, device=device)[ended], ~ended
            minima.points[finished], minima.values[finished] = x[ended], value[ended]
            minima.converged[finished], minima.iterations[finished] = converged[ended], iteration
            live = [index for index, kept in zip(live, keep.tolist(), strict=True) if kept]
            if not live:
                break
            x, value, gradient, direction, slope = (t[keep] for t in (x, value, gradient, direction, slope))
            history = history.of(keep)
        step, new_value, new_gradient, stuck = _search(objective, live, x, value, gradient, direction, slope)
        x = x + step[:, None] * direction
        history.add(step[:, None] * direction, new_gradient - gradient)
        gained, value, gradient = value - new_value, new_value, new_gradient
    return minima


@dataclass(eq=False)
class _History:
    """The last steps s and changes of the gradient y, (p, MEMORY, n) ring buffers, and the products s'y and y'y of all pairs."""

    s: Tensor
    y: Tensor
    sy: Tensor
    yy: Tensor
    added: int = 0

    @classmethod
    def empty(cls, like: Tensor) -> _History:
        """No pairs yet, for problems (p, n) like these."""
        count, size = like.shape
        pairs, products = (count, MEMORY, size), (count, MEMORY, MEMORY)
        return cls(like.new_zeros(pairs), like.new_zeros(pairs), like.new_zeros(products), like.new_zeros(products))

    def direction(self, gradient: Tensor) -> Tensor:
        """The descent direction -H g, (p, n), where H estimates the inverse Hessian from the pairs."""
        if not self.added:
            return -gradient
        order = torch.arange(self.added, self.added + MEMORY, device=gradient.device) % MEMORY  # the oldest first
        sy, yy = self.sy[:, order][:, :, order], self.yy[:, order][:, :, order]
        diagonal = sy.diagonal(dim1=1, dim2=2)
        unused = diagonal <= 0  # a slot without a pair holds zeros, which an empty row of the triangle leaves alone
        triangle = sy.triu() + torch.diag_embed(unused.to(sy.dtype))
        scale = (diagonal / yy.diagonal(dim1=1, dim2=2)).nan_to_num(1.0)
        # The scale of the newest pair; 1 without any.
        newest = torch.where(unused, -1, torch.arange(MEMORY, device=gradient.device)).amax(1, keepdim=True).clamp(min=0)
        scale = scale.gather(1, newest)[:, :, None]  # (p, 1, 1)
        along_s = (self.s @ gradient[:, :, None])[:, order]  # (p, MEMORY, 1)
        along_y = (self.y @ gradient[:, :, None])[:, order]
        a = torch.linalg.solve_triangular(triangle, along_s, upper=True)
        inner = diagonal[:, :, None] * a + scale * (yy @ a - along_y)
        b = torch.linalg.solve_triangular(triangle.mT, inner, upper=False)
        inverse = order.argsort()
        change: Tensor = (scale * a[:, inverse]).mT @ self.y - b[:, inverse].mT @ self.s  # (p, 1, n)
        return change[:, 0] - scale[:, 0] * gradient

    def add(self, s: Tensor, y: Tensor) -> None:
        """Replace the oldest pair; by zeros for a problem whose new pair shows no curvature."""
        curved = (s * y).sum(1) > torch.finfo(s.dtype).eps * y.square().sum(1)
        slot = self.added % MEMORY
        self.s[:, slot], self.y[:, slot] = s * curved[:, None], y * curved[:, None]
        s, y = self.s[:, slot, :, None], self.y[:, slot, :, None]
        self.sy[:, :, slot], self.sy[:, slot] = (self.s @ y)[:, :, 0], (self.y @ s)[:, :, 0]
        self.yy[:, slot] = self.yy[:, :, slot] = (self.y @ y)[:, :, 0]
        self.added += 1

    def of(self, problems: Tensor) -> _History:
        """The history of some problems, bool (p,)."""
        return _History(self.s[problems], self.y[problems], self.sy[problems], self.yy[problems], self.added)


def _search(
    objective: Objective, live: list[int], x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps (p,) that satisfy Wolfe's conditions, values and gradients there, and where none was found (bool; the step is 0).

    By bisection, and doubling while there is no upper end. Where rounding hides the gain of a step, its slope decides
    (Hager and Zhang's approximate conditions, 2005).
    """
    step, low, high = torch.ones_like(value), torch.zeros_like(value), torch.full_like(value, torch.inf)
    new_value, new_gradient = value.clone(), gradient.clone()
    remaining = torch.arange(len(live), device=x.device)
    for _ in range(TRIALS):
        trial, d = step[remaining], direction[remaining]
        f, g = objective(x[remaining] + trial[:, None] * d, [live[index] for index in remaining.tolist()])
        before, first, after = value[remaining], slope[remaining], (g * d).sum(1)
        gains = f <= before + LEAST * trial * first
        gains |= (f <= before + ROUNDING * before.abs()) & (after <= (2 * LEAST - 1) * first)
        short = gains & (after < MOST * first)
        good = gains & ~short
        new_value[remaining[good]], new_gradient[remaining[good]] = f[good], g[good]
        low[remaining[short]], high[remaining[~gains]] = trial[short], trial[~gains]
        remaining = remaining[~good]
        if not len(remaining):
            break
        middle = (low[remaining] + high[remaining]) / 2
        step[remaining] = torch.where(middle.isinf(), 2 * step[remaining], middle)
    stuck = torch.zeros_like(value, dtype=torch.bool)
    stuck[remaining], step[remaining] = True, 0.0
    return step, new_value, new_gradient, stuck
