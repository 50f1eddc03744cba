"""The shell that a command is typed in: what it exports must not change the jobs, nor the scheduler's answers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Options of SLURM's commands, which would win over the job's script; what an interactive job (salloc, srun --pty) is told
# of itself; and how a running stage is told to spread. What leads to the scheduler stays.
NOT_OURS = re.compile(
    r"(SBATCH|SALLOC|SRUN|SQUEUE|SCANCEL|SACCT|SINFO|SCONTROL|SLURMD|PMIX?)_|SLURM_(?!(CONF|CONF_SERVER|JWT)$)"
    r"|(CUDA|ROCR)_VISIBLE_DEVICES$|GPU_DEVICE_ORDINAL$|IGPT_(DEVICES|NODES|RENDEZVOUS|PLANNED)$"
)


@contextmanager
def plain_shell() -> Iterator[None]:
    """Without those variables meanwhile, for what is called in it."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if NOT_OURS.match(name)}
    try:
        yield
    finally:
        os.environ.update(kept)
