"""What a speed comparison is made of: candidates that do the same work on the same weights, and the machine's limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch

from igpt.companion.experiments.speed import MODULES
from igpt.errors import UsageError

# glibc told to keep its memory, which alone makes some programs twice as fast.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Work:
    """Work that is ready to be timed.

    run : does it once
    answer : numbers that every candidate must compute, so that all do the same; empty where there are none to compare
    times : how many of ``run`` make the whole work, where doing all of it would take hours or is not possible
    device : which is waited for after each run
    """

    run: Callable[[], object]
    answer: list[float]
    times: float = 1.0
    device: str = "cpu"

    def once(self) -> None:
        """Do it once, to the end."""
        self.run()
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison. ``prepare`` gets ``toy`` and is called in a process of its own.

    tuned : glibc's allocator tuned, or as installed
    tolerance : by how much, relative to the largest, its answer may differ from the first candidate's
    """

    name: str
    prepare: Callable[[bool], Work]
    tuned: bool = False
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Task:
    """Candidates that take turns; the first one's answer is the reference."""

    title: str  # what is done
    candidates: tuple[Candidate, ...]

    def candidate(self, name: str) -> Candidate:
        """The candidate of a name."""
        return next(c for c in self.candidates if c.name == name)


def load_task(name: str) -> Task:
    """The task of a name. Only its module is imported, so that a record becomes stale with what it uses alone.

    Raises UsageError for an unknown name.
    """
    if name not in MODULES:
        raise UsageError(f"there is no comparison {name!r}; choose from {', '.join(MODULES)}")
    task: Task = import_module(f"igpt.companion.bench.{MODULES[name]}").TASKS[name]
    return task


def both(name: str, prepare: Callable[[bool], Work], *, tolerance: float = 1e-3) -> tuple[Candidate, Candidate]:
    """One candidate with the allocator as installed, and the same with it tuned."""
    return Candidate(name, prepare, False, tolerance), Candidate(f"{name}, tuned", prepare, True, tolerance)


def device_of(toy: bool, *, gpu: bool) -> str:
    """The device of a task; the CPU stands in for a GPU at toy size. Raises UsageError where there is no GPU."""
    if not gpu or (toy and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError("this comparison needs a GPU, and there is none here: run it on a machine with one")
    return "cuda"
