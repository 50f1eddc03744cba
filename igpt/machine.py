"""What this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and WSL's


def cores() -> int:
    """Processor cores that this process may use: its affinity and, in a container, what its cgroup is allowed."""
    from joblib import cpu_count

    return int(cpu_count())


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
