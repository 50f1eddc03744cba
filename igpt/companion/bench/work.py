"""What a speed comparison is made of: candidates that do the same work on the same weights, and the machine's limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from igpt.errors import UsageError

TASKS = (
    "sampling",
    "features",
    "quantise",
    "tokenise",
    "loading",
    "tokens",
    "training",
    "training_s",
    "tuning",
    "probe",
    "probe_layers",
    "sampling_gpu",
    "features_gpu",
    "training_gpu",
)  # each a module of this package

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
    answer : numbers that every candidate must have found, so that all do the same; empty for a limit
    times : how many of ``run`` make the whole work, where doing all of it would take hours or is not possible
    """

    run: Callable[[], object]
    answer: list[float]
    times: float = 1.0


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
    """Contestants that take turns; the first one's answer is the one the others are held to."""

    title: str  # what is done, as a table's caption says it
    candidates: tuple[Candidate, ...]

    def candidate(self, name: str) -> Candidate:
        """The candidate of a name."""
        return next(c for c in self.candidates if c.name == name)


def load_task(name: str) -> Task:
    """The comparison of a name. Its module is imported by name, so that its times go stale with what it uses alone.

    Raises UsageError for an unknown name.
    """
    if name not in TASKS:
        raise UsageError(f"there is no comparison {name!r}; choose from {', '.join(TASKS)}")
    task: Task = import_module(f"igpt.companion.bench.{name}").TASK
    return task


def both(name: str, prepare: Callable[[bool], Work], *, tolerance: float = 1e-3) -> tuple[Candidate, Candidate]:
    """One candidate with the allocator as installed, and the same with it tuned."""
    return Candidate(name, prepare, False, tolerance), Candidate(f"{name}, tuned", prepare, True, tolerance)
