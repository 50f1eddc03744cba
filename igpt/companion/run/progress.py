"""What a person sees while a plan runs: a bar and the time left for each stage at work, and for the whole.

In a terminal bars move in place; into a pipe or a log each event is a line. All of it goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from igpt.companion.results.plan import PlannedStage
from igpt.companion.run.folder import read_fraction
from igpt.companion.stage import Stage
from igpt.text import counted


class Progress:
    """Bars or lines over the stages to run."""

    def __init__(
        self,
        todo: Sequence[PlannedStage],
        folder_of: Callable[[PlannedStage], Path],
        expected: Callable[[PlannedStage], float],
        *,
        workers: int,
    ) -> None:
        """A plan's stages to run, where each works, how many seconds it should take, and how many run at once."""
        self._folder_of = folder_of
        self._expected = expected
        self._workers = workers
        self._left = {planned.stage: expected(planned) for planned in todo}
        self._dependents = {p.stage: [c for c in todo if p.stage in c.parents] for p in todo}
        self._running: dict[Stage, tuple[PlannedStage, float, TaskID]] = {}
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
        )
        self._bars = Bars(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._total = self._bars.add_task(counted(len(todo), "stage"), total=len(todo), left="")
        self._ended = 0

    def __enter__(self) -> Progress:
        """Begin to draw."""
        self._bars.start()
        if not self._console.is_terminal:
            self._say(f"{counted(len(self._left), 'stage')} to run, {_clock(self._seconds_left())} expected")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the screen as it was, with the lines of what ended."""
        self._bars.stop()

    def priority(self, planned: PlannedStage) -> float:
        """Seconds of the longest chain that waits for this stage, itself included."""
        return self._expected(planned) + max(map(self.priority, self._dependents[planned.stage]), default=0)

    def start(self, planned: PlannedStage) -> None:
        """A stage begins."""
        task = self._bars.add_task(planned.stage.name, total=1, left=f"{_clock(self._expected(planned))} left")
        self._running[planned.stage] = (planned, time.monotonic(), task)
        if not self._console.is_terminal:
            self._say(f"start {planned.stage.name}, {_clock(self._expected(planned))} expected")

    def refresh(self) -> None:
        """Look at what the running stages report."""
        for stage, (planned, begun, task) in self._running.items():
            elapsed = time.monotonic() - begun
            fraction = read_fraction(self._folder_of(planned)) or 0.0
            by_time = elapsed / max(self._expected(planned), elapsed * 1.05)
            fraction = max(fraction, 0.0) or by_time
            left = elapsed * (1 - fraction) / fraction if fraction else self._expected(planned)
            self._left[stage] = left
            self._bars.update(task, completed=fraction, left=f"{_clock(left)} left")
        self._bars.update(self._total, left=f"{_clock(self._seconds_left())} left")

    def end(self, planned: PlannedStage, how: str) -> None:
        """A stage is done, failed, or will not be run."""
        self._left.pop(planned.stage)
        self._ended += 1
        took = ""
        if planned.stage in self._running:
            _, begun, task = self._running.pop(planned.stage)
            took = f" in {_clock(time.monotonic() - begun)}"
            self._bars.remove_task(task)
        self._bars.update(self._total, completed=self._ended)
        left = f", {len(self._left)} to go, {_clock(self._seconds_left())} left" if self._left else ""
        self._say(f"{how:5} {planned.stage.name}{took}{left}")

    def _seconds_left(self) -> float:
        """Of the whole: the work left over the workers, but no less than the longest stage."""
        return max(sum(self._left.values()) / self._workers, max(self._left.values(), default=0))

    def _say(self, line: str) -> None:
        """A line that stays."""
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds, as 1:05; from an hour on with hours, as 2:01:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
