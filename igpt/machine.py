"""Cores, memory and GPUs that this process may use."""

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
    """Bytes of memory available to this process, on the system and within its cgroup's limit.

    Cached files count as free. Infinite if unknown.
    """
    free = [float("inf")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, StopIteration):
        entry = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path("/sys/fs/cgroup") / entry[3:].strip("/")
        for folder in (group, *group.parents[: -len(Path("/sys/fs/cgroup").parents)]):
            with suppress(OSError, StopIteration, ValueError):  # without a limit the file contains "max"
                limit, used = (float((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                counters = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                free.append(limit - used + next(float(size) for name, size in counters if name == "inactive_file"))
    return max(min(free), 0.0)


def gpus() -> list[str]:
    """The GPUs that torch can use, in the notation of CUDA_VISIBLE_DEVICES."""
    if not any(map(os.path.exists, DRIVERS)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _usable(visible)
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]


@cache
def _usable(visible: str | None) -> int:
    """Number of GPUs that torch can use, counted in a subprocess, since torch loads slowly and keeps some of a GPU's memory."""
    if visible == "":
        return 0
    process = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )
    return int(process.stdout) if process.returncode == 0 else 0
