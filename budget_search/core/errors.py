"""What can go wrong, as the user sees it: one clear line each.

A message says what was wrong, what was received, what is allowed and what to do. The command line turns these
into exit codes; a traceback reaches a user only with ``-v``.
"""


class BudgetSearchError(Exception):
    """A run-time failure (exit code 1)."""

    exit_code = 1


class UsageError(BudgetSearchError):
    """Bad input, found before anything was written (exit code 2)."""

    exit_code = 2


class UnsupportedModelError(UsageError):
    """A model, or a set of its layers, that cannot be made smaller honestly; the message says why."""


class StudyError(BudgetSearchError):
    """A study that cannot be read, written or continued."""
