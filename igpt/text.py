"""Text of others, made fit to be printed."""

from __future__ import annotations


def visible(text: str, *, limit: int | None = None) -> str:
    r"""``text`` on one line, with an escape such as ``\x1b`` for each character that does not print.

    Records, logs and messages are written by anyone. A terminal acts upon control characters (it moves the cursor,
    hides text, changes the title), and marks of direction show a line in another order than it has.

    limit : characters after which the text is cut, with a mark that says so
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
