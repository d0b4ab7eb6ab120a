"""budget-search tells how few layers of a pre-trained transformer a task needs.

``search`` does what the command does, ``read_report`` reads what a study has found, ``keep_layers`` makes any
transformers model smaller, ``LayerSet`` names the layers that stay. Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_search.layers import LayerSet

if TYPE_CHECKING:
    from budget_search.model import keep_layers
    from budget_search.report import Report

__all__ = ["LayerSet", "keep_layers", "read_report", "search"]
__version__ = "0.1.0"


def search(*, quiet: bool = False, **options: Any) -> Report:
    """Search like the command line: ``search(task="qqp", model="xlnet-base-cased", deltas=[0.01])``.

    Takes the options of the command by their names, with ``deltas`` (fractions) for ``--delta``, and tells on stderr
    how it goes unless it is to be ``quiet``. The report prints as the command does, shows itself in a notebook, and
    has ``to_frame()`` and ``export()``. Raises ``budget_search.errors.BudgetSearchError``.
    """
    from budget_search.destination import refuse_foreign
    from budget_search.location import locate
    from budget_search.progress import Console
    from budget_search.request import RECIPE_FIELDS, Request
    from budget_search.session import answer

    changes = {name: options.pop(name) for name in RECIPE_FIELDS if name in options}
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    request = Request(recipe_changes=changes, **fields)
    if request.output:
        refuse_foreign(Path(request.output))
    found = locate(request)
    console = Console(quiet=quiet)
    try:
        report = answer(found, console)
    finally:
        console.close()
    if request.output:
        from budget_search.handover import hand_over

        hand_over(
            found.folder,
            report,
            min(request.deltas),
            Path(request.output),
            trust_remote_code=request.trust_remote_code,
        )
    return report


def read_report(study: str | Path) -> Report:
    """The report of a finished study, by the path of its folder. Raises ``BudgetSearchError``."""
    from budget_search.archive import report_for
    from budget_search.store import StudyFolder

    return report_for(StudyFolder(Path(study)), ())


def __getattr__(name: str) -> Any:
    # Needs torch and transformers, which take seconds to import.
    if name == "keep_layers":
        from budget_search.model import keep_layers

        return keep_layers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
