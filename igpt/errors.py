"""The two kinds of failure: a mistake of the user, and a stage that failed."""


class UsageError(Exception):
    """A mistake that the user can correct: one sentence with the value, what is needed and the next step (exit 2)."""

    def __init_subclass__(cls) -> None:
        """Give every subclass this name, by which it is recognised when it was raised in a kernel."""
        cls.__name__ = UsageError.__name__


class StageError(Exception):
    """A stage failed: one sentence with the stage, the cause and where to look (exit 1)."""
