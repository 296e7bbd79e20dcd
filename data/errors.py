"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something that the user can mend.

    The message is one line that says what was wrong, where, and what to do next. The command line prints it
    without a traceback and exits with 1.
    """
