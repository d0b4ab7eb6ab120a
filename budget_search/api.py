"""The Python interface: ``search``, ``minimize_layers`` and ``read_report``, and the report that they return."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budget_search.app.objective_search import ObjectiveSearch, request_for, search_objective
from budget_search.app.request import request_from_python
from budget_search.app.resolve import resolve_request
from budget_search.app.search import search_or_read
from budget_search.app.study_report import report_for
from budget_search.cli.progress import Console
from budget_search.core.errors import UsageError
from budget_search.core.objective import Measure, Objective
from budget_search.core.serialization import to_plain
from budget_search.models.export_folder import refuse_foreign
from budget_search.report.entries import Result
from budget_search.report.renderers import render
from budget_search.report.renderers.plain_data import flat_row
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from budget_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    from pandas import DataFrame

    from budget_search.models.checkpoint import Export


class StudyReport(Report):
    """A report for use in Python, with output for terminals and notebooks, data frames, and export of answers."""

    @classmethod
    def of(cls, report: Report) -> StudyReport:
        return cls(**vars(report))

    def answer_sentence(self, result: Result) -> str:
        """The answer in one sentence, for readers unfamiliar with layer dropping."""
        return answer_sentence(self, result)

    def to_frame(self, part: Literal["results", "frontier", "trials"] = "results") -> DataFrame:
        """A pandas table: one row per delta (the columns of ``--format csv``), per depth or per evaluation."""
        from pandas import DataFrame

        if part == "results":
            return DataFrame([flat_row(self, result) for result in self.results])
        return DataFrame(to_plain(getattr(self, part)))

    def export(self, output: str | Path, delta: float | None = None, *, trust_remote_code: bool = False) -> Export:
        """Write the answer for ``delta`` (by default the smallest) as a plain Hugging Face checkpoint.

        The same as ``budget-search export``. Raises UsageError for a delta that was not requested, for a
        destination that is taken, and for a report that was not read from its study.
        """
        if self.folder is None:
            raise UsageError("this report has no path to its study: export a report from search() or read_report()")
        from budget_search.app.export_answer import export_answer

        chosen = min(result.delta for result in self.results) if delta is None else delta
        return export_answer(StudyFolder(self.folder), self, chosen, Path(output), trust_remote_code=trust_remote_code)

    def __str__(self) -> str:
        """The text that ``budget-search report`` prints."""
        return render([self], "table")

    def _repr_html_(self) -> str:
        """For a notebook: the path of the study, and ``report.html`` in a frame, which keeps the two styles apart."""
        study, page = escape(str(self.folder or self.study)), escape(render([self], "html"))
        frame = f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="border:0;width:100%;height:46rem"></iframe>'
        return f"<p>Study <code>{study}</code></p>{frame}"


def search(*, quiet: bool = False, **options: Any) -> StudyReport:
    """Search like the command line: ``search(task="qqp", model="xlnet-base-cased", deltas=[0.01])``.

    Takes the options of the command by their names, with ``deltas`` (fractions) for ``--delta``. Progress goes to
    stderr unless ``quiet``. The report has ``to_frame()`` and ``export()``. Raises
    ``budget_search.errors.BudgetSearchError``.
    """
    request = request_from_python(options)
    if request.output:
        refuse_foreign(Path(request.output))
    resolved = resolve_request(request)
    console = Console(quiet=quiet)
    try:
        report = StudyReport.of(search_or_read(resolved, console))
    finally:
        console.close()
    if request.output:
        report.export(request.output, min(request.deltas), trust_remote_code=request.trust_remote_code)
    return report


def minimize_layers(
    objective: Objective,
    *,
    layers: int,
    study: str,
    model: str = "the model",
    metric: str = "score",
    screen_fraction: float = 0.25,
    measure: Measure | None = None,
    constant_score: float | None = None,
    version: str = "",
    quiet: bool = False,
    **options: Any,
) -> StudyReport:
    """Search with an objective of your own: the fewest of ``layers`` layers within each delta of its score.

    ``objective(kept, seed, fraction, split)`` trains the model that keeps the layers ``kept`` (a LayerSet), with this
    seed and this ``fraction`` of the whole training, and returns an ``Outcome`` on ``split``: ``selection`` for screens
    (``screen_fraction`` of the training), ``certification`` for confirmations. An exception makes a failed evaluation.
    ``measure(kept)`` returns size and latency of an answer (``Measured``). ``constant_score`` is the
    score in points of the best answer that ignores its input: a full model that is no better ends the search.

    ``study`` names a folder in ``studies_dir``. The same call resumes it; another ``version`` of the objective needs
    another study. ``options`` are those of ``search`` that concern neither data nor fine-tunes, such as ``deltas``,
    ``seeds``, ``criterion``, ``max_hours``, ``workers`` (evaluations at a time, each in a process of its own).
    Raises ``budget_search.errors.BudgetSearchError``.
    """
    request = request_for(study, study, model, options)
    search = ObjectiveSearch(objective, layers, request, metric, screen_fraction, measure, constant_score, version)
    console = Console(quiet=quiet)
    try:
        return StudyReport.of(search_objective(search, console))
    finally:
        console.close()


def read_report(study: str | Path) -> StudyReport:
    """The report of a finished study, by the path of its folder. Raises ``budget_search.errors.BudgetSearchError``."""
    return StudyReport.of(report_for(StudyFolder(Path(study)), ()))
