"""Every comparison by name."""

from __future__ import annotations

from igpt.bench.features import FEATURES
from igpt.bench.quantise import QUANTISE
from igpt.bench.sampling import SAMPLING

TASKS = {task.name: task for task in (SAMPLING, FEATURES, QUANTISE)}
