"""Render ``report.html``: one self-contained file for desktop, phone and print, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from budget_search.core.errors import UsageError
from budget_search.core.formatting import count, percent, points, printable, tolerance
from budget_search.core.versions import VERSION
from budget_search.report import sections
from budget_search.report.comparisons.comparison import reference_section
from budget_search.report.comparisons.measured_sets import distinct_answers
from budget_search.report.comparisons.paper_protocols import protocol_sections
from budget_search.report.entries import Result
from budget_search.report.plots.figures import COLOURS, inline
from budget_search.report.plots.study_plots import draw
from budget_search.report.renderers import page_sections
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence, largest_batch

# The captions of the pictures, also read by screen readers.
CAPTIONS = {
    "frontier": "Points lost by the number of layers kept. Faint: sets measured in a short fine-tune, or stopped "
    "before the last seed, relative to the full model after an equal fine-tune. Solid: sets measured in full, with one "
    "standard deviation over the seeds. Triangles: values beyond the edge.",
    "layers": "The layers kept by the best set of each depth. Blue: measured in full. Grey: measured in a short "
    "fine-tune, or stopped before the last seed.",
    "depth": "Points lost by strategy: the best set of each depth, and the measured sets of the fixed strategies of "
    "Poor Man's BERT. Hollow: a short fine-tune only.",
    "savings": "Savings of each answer. Lines: 95 % intervals.",
    "evidence": "Points lost by each answer on the examples used to confirm it (certification) and on examples not "
    "used for selection (held_out). Bars end at the upper bound of the loss.",
    "slices": "Where an answer is worse than the full model: by label (circles) and by length (squares).",
}

UNITS = r"%|(?:M|ms|s|min|h|x|points?|layers?)\b"


class Card(NamedTuple):
    """A key figure at the top of the page."""

    value: str
    name: str
    more: str = ""


def render(reports: Sequence[Report], exported: str | None = None) -> str:
    """The file ``report.html`` of one report. Raises UsageError for several."""
    if len(reports) != 1:
        raise UsageError(f"--format html shows one study, received {len(reports)}; several fit in markdown or latex")
    return page(reports[0], exported)


def page(report: Report, exported: str | None = None) -> str:
    """The whole page as HTML. All text from data and names is escaped."""
    drawn = draw(report)
    return _template().render(
        report=report,
        version=VERSION,
        sentences=_sentences(report),
        headline=report.best if report.results else None,
        cards=_cards(report),
        pictures={name: Markup(inline(drawn[name], name, CAPTIONS[name])) for name in drawn},
        captions=CAPTIONS,
        protocols=list(protocol_sections(report)),
        worse=[list(page_sections.prediction_changes(result)) for result in distinct_answers(report)],
        loading=sections.loading(report, exported) if report.results else "",
        colours=COLOURS,
        sections=sections,
        page_sections=page_sections,
        reference_section=reference_section,
    )


def _sentences(report: Report) -> list[str]:
    """The answers, the most useful one first."""
    if not report.results:
        return ["No answer yet."]
    headline = answer_sentence(report, report.best)
    return sorted(sections.sentences(report), key=lambda sentence: not sentence.startswith(headline))


def _cards(report: Report) -> list[Card]:
    if not report.results:
        return []
    result = report.best
    cards = [
        Card(f"{result.depth} of {report.layers_total}", "layers", f"within {tolerance(result.delta)}"),
        _lost_card(result),
    ]
    if not result.is_full and result.parameters is not None:
        parameters = f"{count(result.parameters)} instead of {count(report.baseline.parameters)}"
        cards.append(Card(percent(result.parameters_saved), "of the parameters saved", parameters))
    timed = largest_batch(result.inference)
    if timed is not None and timed.saved is not None and timed.saved.low is not None:
        between = f"{percent(timed.saved.low)} to {percent(timed.saved.high)}, batches of {timed.batch}"
        cards.append(Card(percent(timed.saved.value), "of the inference time saved", between))
    return cards


def _lost_card(result: Result) -> Card:
    name = "points lost" if result.degradation >= 0 else "points gained"
    bound = ""
    if result.degradation_upper is not None and not result.is_full:
        bound = f"at most {points(result.degradation_upper)} lost, {percent(result.confidence)} confidence"
    return Card(points(abs(result.degradation)), name, bound)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("budget_search.report.renderers"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "slug": lambda text: text.replace(" ", "-").replace(",", "")}
    return environment.get_template("report.html")


def _plain(text: str) -> str:
    """Remove control characters, and keep a number and its unit on one line."""
    return re.sub(rf"(?<=\d) (?={UNITS})", "\u00a0", printable(text).replace(" +- ", " ± "))
