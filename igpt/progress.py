"""Progress bars, on a terminal only, and single lines; both on stderr."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm

from igpt.text import visible


def tell(line: str) -> None:
    """Print one line on stderr, above the bars if there are any."""
    tqdm.write(visible(line), file=sys.stderr)


class Bar:
    """A progress bar with rate and remaining time, on a terminal only; call it with the units done and the total.

    The rate is measured from the first call on, whose units were done by an earlier command.

    unit : ``"B"`` for bytes, shown as MB and GB; other units begin with a space
    layout : tqdm's ``bar_format``; its default if None
    """

    def __init__(self, name: str, unit: str, *, layout: str | None = None) -> None:
        options = {"unit": unit, "unit_scale": unit == "B", "bar_format": layout}
        self._bar = tqdm(desc=name, file=sys.stderr, disable=None, leave=False, miniters=0, **options)
        self._done: int | None = None

    @property
    def hidden(self) -> bool:
        """Whether stderr is not a terminal, so that no bar is shown."""
        return bool(self._bar.disable)

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """Show the progress; ``note`` stays beside the bar until the next note."""
        if self._done is None or done < self._done:  # the first report, or that of the next file
            self._bar.reset(total)
            self._bar.initial = self._bar.n = done
        self._done, self._bar.total = done, total
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.close()
