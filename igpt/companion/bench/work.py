"""The parts of a speed comparison: candidates that do the same work on the same weights, and the machine's limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch

from igpt.companion.experiments.speed import MODULES
from igpt.errors import UsageError

# Makes glibc keep freed memory, which alone makes some programs twice as fast.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass(frozen=True)
class Work:
    """Work prepared for timing.

    run : does the work once, or a part of it
    answer : numbers that every candidate must compute, as proof of the same work; empty where there is nothing to compare
    times : how many runs make the whole work, where all of it would take hours or is not possible
    device : synchronised after each run
    """

    run: Callable[[], object]
    answer: list[float]
    times: float = 1.0
    device: str = "cpu"

    def once(self) -> None:
        """Run once, and wait for the device."""
        self.run()
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison. ``prepare`` is called with ``toy`` in the candidate's own process.

    tuned : whether glibc's allocator is tuned (`TUNED`), or as installed
    tolerance : largest difference from the first candidate's answer, relative to the largest number in that answer
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
        """A candidate by name."""
        return next(c for c in self.candidates if c.name == name)


def load_task(name: str) -> Task:
    """A task by name. Only its module is imported, so that a change elsewhere does not make its record stale.

    Raises UsageError for an unknown name.
    """
    if name not in MODULES:
        raise UsageError(f"there is no comparison {name!r}; choose from {', '.join(MODULES)}")
    task: Task = import_module(f"igpt.companion.bench.{MODULES[name]}").TASKS[name]
    return task


def both(name: str, prepare: Callable[[bool], Work], *, tolerance: float = 1e-3) -> tuple[Candidate, Candidate]:
    """A candidate with the allocator as installed, and the same with a tuned allocator."""
    return Candidate(name, prepare, False, tolerance), Candidate(f"{name}, tuned", prepare, True, tolerance)


def device_of(toy: bool, *, gpu: bool) -> str:
    """The device of a task; without a GPU a toy task runs on the CPU, and others raise UsageError."""
    if not gpu or (toy and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UsageError("this comparison needs a GPU, and there is none here: run it on a machine with one")
    return "cuda"
