"""Runs candidates in turns, each in its own process, round after round, so that disturbances affect all of them alike."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from igpt.companion.bench import worker
from igpt.companion.bench.work import TUNED, Candidate, Task, load_task
from igpt.errors import UsageError
from igpt.fast import note_uncompiled
from igpt.measure import Seconds


def compare(
    name: str, *, rounds: int, toy: bool = False, report: Callable[[int, int], None] = lambda done, total: None
) -> Seconds:
    """Seconds of every candidate of a task in every round.

    Raises UsageError for an unknown task, fewer than one round, or a peer that is not installed; RuntimeError when a
    candidate's answer differs from the first one's, or its process ends.
    """
    if rounds < 1:
        raise UsageError(f"a comparison takes at least one round, not {rounds}")
    task = toy_task(name) if toy else load_task(name)
    seconds: Seconds = {candidate.name: [] for candidate in task.candidates}
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(_worker(name, c, toy=toy)) for c in task.candidates}
        check_answers(task, {name: process.answer for name, process in workers.items()})
        total = rounds * len(workers)
        for done in range(total):
            candidate = task.candidates[done % len(workers)].name
            seconds[candidate].append(workers[candidate].once())
            report(done + 1, total)
    return seconds


def toy_task(name: str) -> Task:
    """A task without candidates that differ from another one by the allocator alone, which makes no difference at toy size."""
    task = load_task(name)
    names = {candidate.name for candidate in task.candidates}
    return replace(task, candidates=tuple(c for c in task.candidates if c.name.removesuffix(", tuned") not in names - {c.name}))


def check_answers(task: Task, answers: dict[str, list[float]]) -> None:
    """Raise RuntimeError when a candidate's answer is not finite or differs from the first one's."""
    first = answers[task.candidates[0].name]
    for candidate in task.candidates:
        answer = answers[candidate.name]
        difference = max((abs(a - b) for a, b in zip(answer, first, strict=bool(answer))), default=0.0)
        if not all(map(math.isfinite, answer)) or difference > candidate.tolerance * max(map(abs, first), default=0.0):
            raise RuntimeError(f"{candidate.name} computes {answer}, {task.candidates[0].name} {first}: they do not do the same")


class _Worker:
    """A candidate's process, ready to work."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self._process = name, process
        first = self._read()
        if "refused" in first:
            raise UsageError(str(first["refused"]))
        note_uncompiled(str(first.get("uncompiled", "")))
        self.answer: list[float] = first["answer"]  # type: ignore[assignment]

    def once(self) -> float:
        """Do the work once. Returns the seconds that it took."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._read()["seconds"])  # type: ignore[arg-type]

    def _read(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with code {self._process.wait()}")
        message: dict[str, object] = json.loads(line)
        return message


@contextmanager
def _worker(task: str, candidate: Candidate, *, toy: bool) -> Iterator[_Worker]:
    """A candidate's process for the duration of a with block. Its stderr is shown when it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in TUNED and k != "OMP_NUM_THREADS"}
    if candidate.tuned:
        environment |= TUNED
    command = [sys.executable, "-m", worker.__name__, task, candidate.name, *(["toy"] if toy else [])]
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
        try:
            yield _Worker(candidate.name, process)
        except RuntimeError as error:
            stderr.seek(0)
            raise RuntimeError(f"{error}\n{stderr.read()[-2000:]}") from None
        finally:
            try:
                process.communicate(timeout=10)  # closes stdin: the process leaves its loop and removes its files
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
