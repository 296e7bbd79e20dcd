"""The exceptions that stand for a user's mistake, and the first line of others."""


class UserError(Exception):
    """Something that the user can mend.

    The message is one line that says what was wrong, where, and what to do next. The command line prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """Options that contradict each other, or lack one."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
