"""Work on pictures in several processes, with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from igpt.errors import UsageError

Result = TypeVar("Result")
AHEAD = 2  # pieces of work for each worker that are begun, or done and not yet taken; loky's queue holds as many


def each(
    function: Callable[..., Result], work: Iterable[tuple[Any, ...]], *, workers: int, ordered: bool = False
) -> Generator[Result]:
    """Results of ``function`` for each tuple of arguments, computed in ``workers`` processes, or in this one.

    ordered : whether results come in the order of ``work``, as they are wanted, and not as they are finished
    Arguments are taken and results computed only a little ahead of what is consumed: `AHEAD` for each worker. A worker ends
    when this process ends, or the iterator. A process that is itself a worker does the work alone.
    Raises UsageError when a worker is killed.
    """
    if workers <= 1 or multiprocessing.parent_process() is not None:
        yield from (function(*arguments) for arguments in work)
        return
    from joblib.externals.loky import ProcessPoolExecutor  # joblib.Parallel computes all results ahead, whatever is consumed

    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),))
    waiting, begun = iter(work), deque[Future[Result]]()
    try:
        begun += [pool.submit(function, *arguments) for arguments in islice(waiting, AHEAD * workers)]
        while begun:
            if not ordered:
                done = wait(begun, return_when=FIRST_COMPLETED).done
                begun = deque(sorted(begun, key=lambda future: future not in done))
            result = begun.popleft().result()
            begun += [pool.submit(function, *arguments) for arguments in islice(waiting, 1)]
            if not begun:
                pool.shutdown()  # before the last result, after which nobody may ask
            yield result
    except BrokenProcessPool:
        raise UsageError("a worker was killed, for memory perhaps: run the same command again, with fewer --workers") from None
    finally:
        while any(not future.running() and not future.done() for future in begun):  # else loky's thread fails on killing
            time.sleep(0.001)
        pool.shutdown(kill_workers=bool(begun))


def _start_worker(parent: int) -> None:
    """Initialise a worker: ignore Ctrl-C, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
