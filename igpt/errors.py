"""The two kinds of failure a user meets: a mistake of theirs, and work that failed while it ran."""


class UsageError(Exception):
    """A mistake the user can mend: one sentence with what was found, what is needed and the next step (exit 2)."""

    def __init_subclass__(cls) -> None:
        """Give every kind this name, by which alone a kernel says what was raised in it."""
        cls.__name__ = UsageError.__name__


class StageError(Exception):
    """A stage that failed while it ran: one sentence with the stage, the cause and where to look (exit 1)."""
