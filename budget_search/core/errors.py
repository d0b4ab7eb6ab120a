"""The errors that a user sees, each with a one-line message.

A message states what is wrong, what was received, what is allowed and what to do. The command line turns the error
into an exit code and prints a traceback only with ``-v``.
"""


class BudgetSearchError(Exception):
    """A run-time failure (exit code 1)."""

    exit_code = 1


class UsageError(BudgetSearchError):
    """Invalid input, detected before anything is written (exit code 2)."""

    exit_code = 2


class UnsupportedModelError(UsageError):
    """A model or layer set for which dropping layers is not supported; the message gives the reason."""


class StudyError(BudgetSearchError):
    """A study cannot be read, written or continued."""
