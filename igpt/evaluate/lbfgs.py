"""L-BFGS for many independent convex problems side by side on one torch device.

The direction is that of the two-loop recursion (Liu and Nocedal, 1989) in its compact form (Byrd, Nocedal and Schnabel, 1994,
theorem 2.2): a few batched products and triangular solves instead of 40 sequential steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 20  # pairs of steps and changes of the gradient that are kept
TRIALS = 40  # of a line search; nearly all searches take the first
LEAST, MOST = 0.1, 0.9  # Wolfe's constants: the part of the first slope that a step must gain, and that may remain after it
ROUNDING = 1e-14  # relative error of an objective in float64

# Objectives (p,) and gradients (p, n) at points (p, n) of the problems with these ascending indices.
Objective = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Minima:
    """Of P problems with n unknowns: float64 (P, n) points and (P,) values, bool (P,) converged, int64 (P,) iterations."""

    points: Tensor
    values: Tensor
    converged: Tensor
    iterations: Tensor


def minimise(objective: Objective, start: Tensor, *, tolerance: float, iterations: int) -> Minima:
    """The minima of smooth, strictly convex objectives, from float64 starts (P, n).

    A problem has converged when its last step lowered its objective, and a full further step promises to lower it, by at
    most ``tolerance`` times the objective (or times 1, if that is more). The promise is g'Hg / 2, with the gradient g and the
    current estimate H of the inverse Hessian, which may be far off in the first steps. A converged problem leaves the batch.
    A problem whose line search finds no lower point, or that runs out of ``iterations``, ends there without converging.
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
        little = tolerance * value.abs().clamp(min=1)
        converged = (-slope / 2 <= little) & ((gained <= little) | stuck)  # at the optimum only rounding makes one stuck
        ended = converged | stuck | (iteration == iterations)
        if bool(ended.any()):
            out, keep = torch.tensor(live, device=device)[ended], ~ended
            minima.points[out], minima.values[out] = x[ended], value[ended]
            minima.converged[out], minima.iterations[out] = converged[ended], iteration
            live = [index for index, stays in zip(live, keep.tolist(), strict=True) if stays]
            if not live:
                break
            x, value, gradient, direction, slope = (t[keep] for t in (x, value, gradient, direction, slope))
            history = history.of(keep)
        step, reached, bent, stuck = _search(objective, live, x, value, gradient, direction, slope)
        x = x + step[:, None] * direction
        history.add(step[:, None] * direction, bent - gradient)
        gained, value, gradient = value - reached, reached, bent
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
        none = diagonal <= 0  # a slot without a pair holds zeros, which an empty row of the triangle leaves alone
        triangle = sy.triu() + torch.diag_embed(none.to(sy.dtype))
        scale = (diagonal / yy.diagonal(dim1=1, dim2=2)).nan_to_num(1.0)
        # The scale of the newest pair; 1 without any.
        newest = torch.where(none, -1, torch.arange(MEMORY, device=gradient.device)).amax(1, keepdim=True).clamp(min=0)
        scale = scale.gather(1, newest)[:, :, None]  # (p, 1, 1)
        along_s = (self.s @ gradient[:, :, None])[:, order]  # (p, MEMORY, 1)
        along_y = (self.y @ gradient[:, :, None])[:, order]
        a = torch.linalg.solve_triangular(triangle, along_s, upper=True)
        inner = diagonal[:, :, None] * a + scale * (yy @ a - along_y)
        b = torch.linalg.solve_triangular(triangle.mT, inner, upper=False)
        back = order.argsort()
        change: Tensor = (scale * a[:, back]).mT @ self.y - b[:, back].mT @ self.s  # (p, 1, n)
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
    reached, bent = value.clone(), gradient.clone()
    todo = torch.arange(len(live), device=x.device)
    for _ in range(TRIALS):
        at, d = step[todo], direction[todo]
        f, g = objective(x[todo] + at[:, None] * d, [live[index] for index in todo.tolist()])
        before, first, after = value[todo], slope[todo], (g * d).sum(1)
        gains = f <= before + LEAST * at * first
        gains |= (f <= before + ROUNDING * before.abs()) & (after <= (2 * LEAST - 1) * first)
        short = gains & (after < MOST * first)
        good = gains & ~short
        reached[todo[good]], bent[todo[good]] = f[good], g[good]
        low[todo[short]], high[todo[~gains]] = at[short], at[~gains]
        todo = todo[~good]
        if not len(todo):
            break
        middle = (low[todo] + high[todo]) / 2
        step[todo] = torch.where(middle.isinf(), 2 * step[todo], middle)
    stuck = torch.zeros_like(value, dtype=torch.bool)
    stuck[todo], step[todo] = True, 0.0
    return step, reached, bent, stuck
