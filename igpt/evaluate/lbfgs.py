"""L-BFGS for many independent convex problems side by side, all of it on one torch device; it knows nothing of probes.

The direction is that of the two-loop recursion (Liu and Nocedal, 1989), computed in its compact form (Byrd, Nocedal and Schnabel,
1994, theorem 2.2): a few batched products and triangular solves instead of 40 steps one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 20  # pairs of steps and changes of the gradient that are kept
TRIALS = 40  # of a line search; nearly all take the first
LEAST, MOST = 0.1, 0.9  # of the slope at the start: what a step must gain, and what may be left of it
ROUNDING = 1e-14  # of an objective, relative: what float64 leaves uncertain

# Objective (p,) and gradient (p, n) at points (p, n) of the problems whose places are given, ascending.
Objective = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Minima:
    """Of P problems of n unknowns: float64 (P, n) points and (P,) values, bool (P,) converged, int64 (P,) iterations."""

    points: Tensor
    values: Tensor
    converged: Tensor
    iterations: Tensor


def minimise(objective: Objective, start: Tensor, *, tolerance: float, iterations: int) -> Minima:
    """The minima of smooth, strictly convex objectives, from float64 starts (P, n).

    A problem has converged when its last step lowered its objective, and a full further step promises to lower it, by no
    more than ``tolerance`` of it (of 1, where the objective is smaller). Promised is g'Hg / 2, with g the gradient and H the
    inverse Hessian as L-BFGS has it by then, which may be far off after a few steps. It then leaves the batch and costs
    nothing more. One whose line search finds no lower point, or that ``iterations`` do not suffice for, ends where it is and
    has not converged.
    """
    count, device = len(start), start.device
    x, live = start, list(range(count))  # points, and places in the whole batch, of the problems that go on
    value, gradient = objective(x, live)
    stuck = torch.zeros(count, dtype=torch.bool, device=device)
    found = Minima(x.clone(), value.clone(), stuck.clone(), torch.zeros(count, dtype=torch.int64, device=device))
    gained = torch.full_like(value, torch.inf)
    history = _History.empty(start)
    for iteration in range(iterations + 1):
        direction = history.direction(gradient)
        slope = (gradient * direction).sum(1)
        little = tolerance * value.abs().clamp(min=1)
        converged = (-slope / 2 <= little) & ((gained <= little) | stuck)  # stuck by rounding only, at the optimum
        ended = converged | stuck | (iteration == iterations)
        if bool(ended.any()):
            out, keep = torch.tensor(live, device=device)[ended], ~ended
            found.points[out], found.values[out] = x[ended], value[ended]
            found.converged[out], found.iterations[out] = converged[ended], iteration
            live = [place for place, stays in zip(live, keep.tolist(), strict=True) if stays]
            if not live:
                break
            x, value, gradient, direction, slope = (t[keep] for t in (x, value, gradient, direction, slope))
            history = history.of(keep)
        step, reached, bent, stuck = _search(objective, live, x, value, gradient, direction, slope)
        x = x + step[:, None] * direction
        history.add(step[:, None] * direction, bent - gradient)
        gained, value, gradient = value - reached, reached, bent
    return found


@dataclass(eq=False)
class _History:
    """The last steps s and changes of gradient y, (p, MEMORY, n) in a ring, and the products s'y and y'y of each two."""

    s: Tensor
    y: Tensor
    sy: Tensor
    yy: Tensor
    added: int = 0

    @classmethod
    def empty(cls, like: Tensor) -> _History:
        """None yet, of as many problems and unknowns as ``like`` has."""
        count, size = like.shape
        pairs, products = (count, MEMORY, size), (count, MEMORY, MEMORY)
        return cls(like.new_zeros(pairs), like.new_zeros(pairs), like.new_zeros(products), like.new_zeros(products))

    def direction(self, gradient: Tensor) -> Tensor:
        """Downhill: minus H times the gradient, (p, n), where H is the inverse Hessian that the pairs make of the identity."""
        if not self.added:
            return -gradient
        order = torch.arange(self.added, self.added + MEMORY, device=gradient.device) % MEMORY  # the oldest first
        sy, yy = self.sy[:, order][:, :, order], self.yy[:, order][:, :, order]
        diagonal = sy.diagonal(dim1=1, dim2=2)
        none = diagonal <= 0  # a place without a pair: zeros, which an empty row of the triangle leaves alone
        triangle = sy.triu() + torch.diag_embed(none.to(sy.dtype))
        scale = (diagonal / yy.diagonal(dim1=1, dim2=2)).nan_to_num(1.0)
        # Of the newest pair that there is; 1 where there is none.
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
        """Put one more pair in the oldest one's place; zeros for a problem whose pair shows no curvature."""
        curved = (s * y).sum(1) > torch.finfo(s.dtype).eps * y.square().sum(1)
        place = self.added % MEMORY
        self.s[:, place], self.y[:, place] = s * curved[:, None], y * curved[:, None]
        s, y = self.s[:, place, :, None], self.y[:, place, :, None]
        self.sy[:, :, place], self.sy[:, place] = (self.s @ y)[:, :, 0], (self.y @ s)[:, :, 0]
        self.yy[:, place] = self.yy[:, :, place] = (self.y @ y)[:, :, 0]
        self.added += 1

    def of(self, problems: Tensor) -> _History:
        """That of some problems, bool (p,)."""
        return _History(self.s[problems], self.y[problems], self.sy[problems], self.yy[problems], self.added)


def _search(
    objective: Objective, live: list[int], x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps (p,) that satisfy Wolfe's conditions, values and gradients there, and where none was found (bool; the step is 0).

    By bisection, and doubling while there is no upper end. Where rounding hides what a step gains, its slope decides
    (Hager and Zhang's approximate conditions, 2005).
    """
    step, low, high = torch.ones_like(value), torch.zeros_like(value), torch.full_like(value, torch.inf)
    reached, bent = value.clone(), gradient.clone()
    todo = torch.arange(len(live), device=x.device)
    for _ in range(TRIALS):
        at, d = step[todo], direction[todo]
        f, g = objective(x[todo] + at[:, None] * d, [live[place] for place in todo.tolist()])
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
