"""Work in several processes: in order, a little ahead, with workers that never outlive their process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, alive, wait_until

from igpt.data.workers import AHEAD, each
from igpt.errors import UsageError


def twice(number: int) -> tuple[int, int]:
    """A number doubled, and the process that did it."""
    return 2 * number, os.getpid()


@pytest.mark.parametrize(("workers", "ordered"), [(0, True), (1, False), (2, True), (2, False)])
def test_each_piece_of_work_is_done_once(workers: int, ordered: bool) -> None:
    results = list(each(twice, ((number,) for number in range(20)), workers=workers, ordered=ordered))
    doubled = [value for value, _ in results]
    assert (doubled if ordered else sorted(doubled)) == list(range(0, 40, 2))
    assert ({process for _, process in results} == {os.getpid()}) == (workers < 2)
    assert list(each(twice, iter(()), workers=workers, ordered=ordered)) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_work_is_taken_a_little_ahead_of_what_is_consumed(ordered: bool) -> None:
    taken = 0

    def work() -> Iterator[tuple[int]]:
        nonlocal taken
        for taken in range(1, 1001):
            yield (taken,)

    results = each(twice, work(), workers=2, ordered=ordered)
    for consumed in range(1, 30):
        next(results)
        assert taken <= consumed + 2 * AHEAD
    results.close()


def nested() -> list[int]:
    """The processes of work that a worker hands out."""
    assert multiprocessing.parent_process() is not None
    return [process for _, process in each(twice, ((number,) for number in range(4)), workers=2)] + [os.getpid()]


def test_a_worker_works_alone() -> None:
    for processes in each(nested, [(), ()], workers=2):
        assert len(set(processes)) == 1


def die() -> None:
    """End this process as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(UsageError, match="a worker was killed, for memory perhaps"):
        list(each(die, [()] * 4, workers=2))


def fail() -> None:
    """Refuse the work."""
    raise UsageError("this cannot be read: copy it again")


def test_a_refusal_of_a_worker_is_told_as_it_is() -> None:
    with pytest.raises(UsageError, match="^this cannot be read: copy it again$"):
        list(each(fail, [()] * 4, workers=2))


ORPHANS = """
import os, sys
sys.path.insert(0, {here!r})
from igpt.data.workers import each
results = each(os.getpid, iter([()] * 9), workers=2)
print(*[next(results) for _ in range(4)], flush=True)
{then}
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks Linux whether a process is alive")
@pytest.mark.parametrize("then", ["sys.stdin.read()", "results.close(); sys.stdin.read()", ""])
def test_workers_end_with_their_process_or_its_interest(then: str) -> None:
    code = ORPHANS.format(here=str(ROOT), then=then)
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        workers = {int(number) for number in process.stdout.readline().split()} - {process.pid}
        assert workers
        if "close" in then:
            wait_until(lambda: not any(map(alive, workers)))
        if then == "sys.stdin.read()":
            process.kill()
    wait_until(lambda: not any(map(alive, workers)))
