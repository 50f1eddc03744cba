"""The progress of a run: a bar with the remaining time for each stage at work and for the whole, or lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from igpt.companion.results.plan import PlannedStage
from igpt.companion.run.folder import read_fraction
from igpt.companion.stage import Stage
from igpt.progress import Bar, tell
from igpt.text import counted

LAYOUT = "{percentage:3.0f} % |{bar:24}| {desc}{postfix}"


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
        self._running: dict[Stage, tuple[PlannedStage, float, Bar]] = {}
        self._total, self._stages = Bar(counted(len(todo), "stage"), " stages", layout=LAYOUT), len(todo)

    def __enter__(self) -> Progress:
        if self._total.hidden:
            tell(f"{counted(self._stages, 'stage')} to run, {_clock(self._seconds_left())} expected")
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars off the screen; the lines of what ended stay."""
        for bar in (*(bar for _, _, bar in self._running.values()), self._total):
            bar.close()

    def priority(self, planned: PlannedStage) -> float:
        """Seconds of the longest chain that waits for this stage, itself included."""
        return self._expected(planned) + max(map(self.priority, self._dependents[planned.stage]), default=0)

    def start(self, planned: PlannedStage) -> None:
        """A stage begins."""
        bar = Bar(planned.stage.name, "", layout=LAYOUT)
        self._running[planned.stage] = (planned, time.monotonic(), bar)
        if bar.hidden:
            tell(f"start {planned.stage.name}, {_clock(self._expected(planned))} expected")

    def refresh(self) -> None:
        """Read what the running stages report; before a first report the expected time counts."""
        for stage, (planned, begun, bar) in self._running.items():
            elapsed, expected = time.monotonic() - begun, self._expected(planned)
            fraction = read_fraction(self._folder_of(planned)) or elapsed / max(expected, elapsed * 1.05)
            self._left[stage] = elapsed * (1 - fraction) / fraction if fraction else expected
            bar(int(100 * fraction), 100, f"{_clock(self._left[stage])} left")
        self._total(self._stages - len(self._left), self._stages, f"{_clock(self._seconds_left())} left")

    def end(self, planned: PlannedStage, how: str) -> None:
        """A stage is done, failed, or will not be run."""
        self._left.pop(planned.stage)
        took = ""
        if planned.stage in self._running:
            _, begun, bar = self._running.pop(planned.stage)
            took = f" in {_clock(time.monotonic() - begun)}"
            bar.close()
        left = f", {len(self._left)} to go, {_clock(self._seconds_left())} left" if self._left else ""
        tell(f"{how:5} {planned.stage.name}{took}{left}")

    def _seconds_left(self) -> float:
        """Of the whole: the work left over the workers, but no less than the longest stage."""
        return max(sum(self._left.values()) / self._workers, max(self._left.values(), default=0))


def _clock(seconds: float) -> str:
    """Minutes and seconds, as 1:05; from an hour on with hours, as 2:01:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
