"""The process of one candidate: prints the answer, then does the work once for every line of stdin."""

from __future__ import annotations

import json
import sys
import time

import torch

from igpt.companion.bench.work import load_task
from igpt.errors import UsageError
from igpt.fast import uncompiled
from igpt.machine import cores


def main() -> None:
    """``python -m igpt.companion.bench.worker TASK CANDIDATE [toy]``; one JSON object per line on stdout."""
    task, name, *toy = sys.argv[1:]
    stdout, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    torch.set_num_threads(cores())  # every candidate uses all cores
    try:
        work = load_task(task).candidate(name).prepare(bool(toy))
    except UsageError as error:
        print(json.dumps({"refused": str(error)}), file=stdout, flush=True)
        return
    print(json.dumps({"answer": work.answer, "uncompiled": uncompiled()}), file=stdout, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work.once()
        seconds = work.times * (time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=stdout, flush=True)


if __name__ == "__main__":
    main()
