"""Cores, memory and GPUs of this machine, as far as this process may use them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and WSL's


def cores() -> int:
    """Processor cores within this process's affinity and its cgroup's limit."""
    from joblib import cpu_count

    return int(cpu_count())


def free_memory() -> float:
    """Bytes of memory that this process may still take, of the system's and within its cgroup's limit.

    Cached files count as free. Infinite if unknown.
    """
    free = [float("inf")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, StopIteration):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path("/sys/fs/cgroup") / own[3:].strip("/")
        for folder in (group, *group.parents[: -len(Path("/sys/fs/cgroup").parents)]):
            with suppress(OSError, StopIteration, ValueError):  # without a limit the file has "max"
                limit, used = (float((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                pages = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                free.append(limit - used + next(float(size) for name, size in pages if name == "inactive_file"))
    return max(min(free), 0.0)


def gpus() -> list[str]:
    """The GPUs that torch can use here, as CUDA_VISIBLE_DEVICES names them."""
    if not any(map(os.path.exists, DRIVERS)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _usable(visible)
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]


@cache
def _usable(visible: str | None) -> int:
    """Number of GPUs, counted in a subprocess, since torch takes seconds and keeps some of a card's memory."""
    if visible == "":
        return 0
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )
    return int(done.stdout) if done.returncode == 0 else 0
