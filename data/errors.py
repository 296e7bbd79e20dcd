"""Exceptions for user errors, and the first line of other exceptions."""


class UserError(Exception):
    """A problem that the user can fix.

    The message is one line that says what is wrong, where, and what to do next. The command line prints it without a
    traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(UserError):
    """Options that contradict each other, or a missing option."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
