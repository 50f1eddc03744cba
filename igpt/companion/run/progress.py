"""The progress of a run: bars with remaining times for the run and each running stage; without a terminal, lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from igpt.companion.results.plan import PlannedStage
from igpt.companion.run.folder import read_progress
from igpt.companion.stage import Stage
from igpt.progress import Bar, tell
from igpt.text import counted

LAYOUT = "{percentage:3.0f} % |{bar:24}| {desc}{postfix}"


class Progress:
    """Progress bars or lines for the stages to run."""

    def __init__(
        self,
        todo: Sequence[PlannedStage],
        folder_of: Callable[[PlannedStage], Path],
        expected: Callable[[PlannedStage], float],
        *,
        workers: int,
    ) -> None:
        """Take the stages to run, their folders, their expected seconds, and the number that run at once."""
        self._folder_of, self._workers = folder_of, workers
        self._left = {planned.stage: expected(planned) for planned in todo}  # remaining seconds of unfinished stages
        self._running: dict[Stage, tuple[PlannedStage, float, float, Bar]] = {}  # with start time, expected seconds and bar
        self._stages = counted(len(todo), "stage")
        self._total = Bar(self._stages, "", layout=LAYOUT)
        self._count = len(todo)

    def __enter__(self) -> Progress:
        if self._total.hidden:
            tell(f"{self._stages} to run, {_clock(self._seconds_left())} expected")
        return self

    def __exit__(self, *_: object) -> None:
        for *_running, bar in self._running.values():
            bar.close()
        self._total.close()

    def start(self, planned: PlannedStage) -> None:
        """Show that a stage has started."""
        stage, bar = planned.stage, Bar(planned.stage.name, "", layout=LAYOUT)
        self._running[stage] = (planned, time.monotonic(), self._left[stage], bar)
        if bar.hidden:
            tell(f"start {stage.name}, {_clock(self._left[stage])} expected")

    def refresh(self) -> None:
        """Read the progress of running stages; before its first report, a stage's expected time is used.

        A report counts the work and the seconds of earlier sessions too.
        """
        for stage, (planned, begun, expected, bar) in self._running.items():
            report = read_progress(self._folder_of(planned))
            if report.get("done"):
                seconds, fraction = report["seconds"], report["done"] / report["total"]
            else:
                seconds = time.monotonic() - begun
                fraction = seconds / max(expected, seconds * 1.05)
            self._left[stage] = seconds * (1 - fraction) / fraction if fraction else expected
            bar(int(100 * fraction), 100, f"{_clock(self._left[stage])} left")
        self._total(self._count - len(self._left), self._count, f"{_clock(self._seconds_left())} left")

    def end(self, planned: PlannedStage, how: str) -> None:
        """Show how a stage ended, or why it will not run."""
        self._left.pop(planned.stage)
        duration = ""
        if planned.stage in self._running:
            _, begun, _, bar = self._running.pop(planned.stage)
            duration = f" in {_clock(time.monotonic() - begun)}"
            bar.close()
        left = f", {len(self._left)} to go, {_clock(self._seconds_left())} left" if self._left else ""
        tell(f"{how:5} {planned.stage.name}{duration}{left}")

    def _seconds_left(self) -> float:
        """Remaining seconds of the run: the sum over stages divided by workers, and at least those of the longest stage."""
        return max(sum(self._left.values()) / self._workers, max(self._left.values(), default=0))


def _clock(seconds: float) -> str:
    """A duration as 1:05, or from one hour on as 2:01:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
