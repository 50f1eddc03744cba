"""What this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and WSL's


def cores() -> int:
    """Processor cores that this process may use: its affinity and, in a container, what its cgroup is allowed."""
    from joblib import cpu_count

    return int(cpu_count())


def free_memory() -> float:
    """Bytes of memory that this process may still take: the system's, and in a container or a job what its cgroup is allowed.

    Pages of files, which give way, count as free. Infinite where the system does not say.
    """
    found = [float("inf")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, StopIteration):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path("/sys/fs/cgroup") / own[3:].strip("/")
        for folder in (group, *group.parents[: -len(Path("/sys/fs/cgroup").parents)]):
            with suppress(OSError, StopIteration, ValueError):  # without a limit it says "max"
                limit, used = (float((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                pages = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append(limit - used + next(float(size) for name, size in pages if name == "inactive_file"))
    return max(min(found), 0.0)


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where torch cannot use any."""
    if not any(map(os.path.exists, DRIVERS)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _usable(visible)
    return [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]


@cache
def _usable(visible: str | None) -> int:
    """How many GPUs torch finds, in a process of its own, as it takes seconds and keeps some of a card's memory."""
    if visible == "":
        return 0
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], capture_output=True, text=True
    )
    return int(done.stdout) if done.returncode == 0 else 0
