"""Work on pictures in several processes, with bounded memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from igpt.errors import UsageError

Result = TypeVar("Result")


def each(
    function: Callable[..., Result], work: Iterable[tuple[Any, ...]], *, workers: int, ordered: bool = False
) -> Iterator[Result]:
    """Results of ``function`` for each tuple of arguments, computed in ``workers`` processes, or in this one.

    ordered : whether results come in the order of ``work``, as they are wanted, and not as they are finished
    Arguments are taken and results computed only a little ahead of what is consumed. A worker ends when this process ends.
    Raises UsageError when a worker is killed.
    """
    from joblib import Parallel, delayed

    # With its default max_nbytes, joblib would pass large arrays through files.
    settings = {"max_nbytes": None, "initializer": _start_worker, "initargs": (os.getpid(),)}
    pool = Parallel(max(workers, 1), return_as="generator" if ordered else "generator_unordered", **settings)
    try:
        yield from pool(delayed(function)(*arguments) for arguments in work)
    except BrokenProcessPool:
        raise UsageError("a worker was killed, for memory perhaps: run the same command again, with fewer --workers") from None


def _start_worker(parent: int) -> None:
    """Initialise a worker: ignore Ctrl-C, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
