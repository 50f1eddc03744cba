"""Text that is safe to print, and short lists."""

from __future__ import annotations

from collections.abc import Sequence


def visible(text: str, *, limit: int | None = None) -> str:
    r"""``text`` on one line, with an escape such as ``\x1b`` for each character that does not print.

    Records, logs and messages are written by anyone. A terminal acts upon control characters (it moves the cursor,
    hides text, changes the title), and marks of direction show a line in another order than it has.

    limit : characters after which the text is cut, with a mark that says so
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun, as ``1 stage`` and ``2 stages``; ``many`` where an s at the end does not make it."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(items: Sequence[str], *, most: int) -> str:
    """Items with commas between them, the first ``most`` and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def rounded(value: float, *, least: float) -> str:
    """A value to two significant digits; as ``<0.01`` where it lies between 0 and ``least``.

    >>> rounded(1234.5, least=0.01), rounded(0.001, least=0.01), rounded(0, least=0.01)
    ('1,200', '<0.01', '0')
    """
    return f"<{least:g}" if 0 < value < least else f"{float(f'{value:.2g}'):,.10g}"
