"""Text that is safe to print, and short lists."""

from __future__ import annotations

from collections.abc import Sequence


def visible(text: str, *, limit: int | None = None) -> str:
    r"""``text`` on one line, with an escape such as ``\x1b`` for each non-printable character.

    Records, logs and messages may be untrusted. Control characters make a terminal move the cursor, hide text or
    change the title, and direction marks reorder a line.

    limit : maximum number of characters; a longer text is cut and marked with its length
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun, as ``1 stage`` and ``2 stages``; ``many`` is an irregular plural."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(items: Sequence[str], *, most: int) -> str:
    """The first ``most`` items, separated by commas, and the number of further items."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def rounded(value: float, *, least: float) -> str:
    """A value to two significant digits, or as ``<0.01`` if it is between 0 and ``least`` (here 0.01).

    >>> rounded(1234.5, least=0.01), rounded(0.001, least=0.01), rounded(0, least=0.01)
    ('1,200', '<0.01', '0')
    """
    return f"<{least:g}" if 0 < value < least else f"{float(f'{value:.2g}'):,.10g}"
