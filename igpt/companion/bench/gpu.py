"""Where a comparison on a GPU runs, and when its work is over."""

from __future__ import annotations

from collections.abc import Callable

import torch

from igpt.companion.bench.work import Work
from igpt.errors import UsageError


def place(toy: bool) -> str:
    """The GPU; at toy size the processor stands in for one. Raises UsageError where there is none."""
    if torch.cuda.is_available():
        return "cuda"
    if not toy:
        raise UsageError("this comparison is one of GPUs, and there is none here: run it where there is")
    return "cpu"


def waited(run: Callable[[], object], device: str, answer: list[float], *, times: float = 1.0) -> Work:
    """Work that is over when the device is done with it."""

    def whole() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return Work(whole, answer, times)


def copying(device: str, *, toy: bool, total: float, repeats: int = 20) -> Work:
    """Moving ``total`` bytes, by copies that read and write: what the memory allows."""
    a = torch.ones(2**18 if toy else 2**28, device=device)
    b = torch.empty_like(a)

    def run() -> None:
        for _ in range(repeats):
            b.copy_(a)

    return waited(run, device, [], times=total / (repeats * 2 * 4 * a.numel()))


def multiplying(device: str, *, toy: bool, total: float, repeats: int = 20) -> Work:
    """``total`` operations in square products of bfloat16: what the arithmetic allows."""
    side = 256 if toy else 8192
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(repeats):
            a @ a

    return waited(run, device, [], times=total / (repeats * 2 * side**3))
