"""The two exceptions whose message is shown to users without a traceback: a usage error, and a failed stage."""


class UsageError(Exception):
    """An error that the user can correct; its message is one sentence with value, requirement and next step (exit 2)."""

    def __init_subclass__(cls) -> None:
        """Rename every subclass to UsageError: an error raised in a notebook's kernel is recognised by the name of its class."""
        cls.__name__ = UsageError.__name__


class StageError(Exception):
    """A stage failed; the message is one sentence with the stage, the cause and where to look (exit 1)."""
