"""The errors that users of the package catch; they are defined in ``core.errors``."""

from budget_search.core.errors import BudgetSearchError, StudyError, UnsupportedModelError, UsageError

__all__ = ["BudgetSearchError", "StudyError", "UnsupportedModelError", "UsageError"]
