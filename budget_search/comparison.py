"""Several studies side by side, in the layout of Tables 2 to 4 of *Poor Man's BERT* (Sajjad et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from budget_search.beside import beside
from budget_search.curves import distinct_answers
from budget_search.layers import compact_indices
from budget_search.layout import Grid, Section
from budget_search.report import Report, Result
from budget_search.wording import NOTHING, count, largest_batch, pairs, percent, points

DELTA = "δ"
SAVED = "↓"
UNRELIABLE = "*"
# Characters of a model's name on one line of a terminal.
LONGEST_NAME = 24


def comparison(reports: Sequence[Report]) -> list[Section]:
    """Table 2, how many layers can be dropped within each delta; Table 3, what that saves; Table 4, other models."""
    others = [beside(reports)] if any(report.references for report in reports) else []
    return [_dropped(reports), _saved(reports), *others]


def _dropped(reports: Sequence[Report]) -> Section:
    tasks = list(dict.fromkeys(report.task for report in reports))
    deltas = sorted({result.delta for report in reports for result in report.results})
    rows: list[tuple[str, ...]] = []
    for model, studies in _by_model(reports):
        rows.append((model, *[""] * len(tasks)))
        for delta in deltas:
            answers = {report.task: _answer(report, delta) for report in studies}
            rows.append((f"{100 * delta:g}%", *(_dropped_cell(answers.get(task)) for task in tasks)))
    unreliable = any(result.verdict == "held_out disagrees" for report in reports for result in report.results)
    return Section(
        "Layers dropped",
        grid=Grid((DELTA, *tasks), tuple(rows), {DELTA: LONGEST_NAME}, tuple(tasks)),
        legend=(
            "Number of layers dropped from the model while the score stays within the loss of the first column, in "
            "points.",
            *((f"{UNRELIABLE} not on the held-out examples: do not rely on it.",) if unreliable else ()),
        ),
    )


def _saved(reports: Sequence[Report]) -> Section:
    rows: list[tuple[str, ...]] = []
    for model, studies in _by_model(reports):
        rows.append((model, *[""] * 6))
        for report in studies:
            baseline = report.baseline
            rows.append((report.task, "0", "", points(0.0), count(baseline.parameters), "1.00", NOTHING))
            rows += [_saved_row(report, result) for result in distinct_answers(report)]
    headers = ("task", "drop", "kept", "loss", "param.", "fine-tuning speedup", "inference time")
    widths = {"task": LONGEST_NAME, "kept": 13, "fine-tuning speedup": 11, "inference time": 9}
    return Section(
        "What it saves",
        grid=Grid(headers, tuple(rows), widths, headers[3:]),
        legend=(
            "loss: points lost on certification, the mean over the seeds. fine-tuning speedup: how many times as fast "
            "as the full model.",
            f"inference time: what is saved ({SAVED}) of the full model's, of the largest batch that was timed.",
        ),
    )


def _saved_row(report: Report, result: Result) -> tuple[str, ...]:
    timed = largest_batch(result.inference)
    saved = NOTHING if timed is None or timed.saved is None else f"{percent(timed.saved.value)} {SAVED}"
    speedup = NOTHING if result.fine_tune_speedup is None else f"{result.fine_tune_speedup:.2f}"
    mark = UNRELIABLE if result.verdict == "held_out disagrees" else ""
    return (
        report.task,
        f"{len(result.dropped)}{mark}",
        compact_indices(result.kept),
        points(result.degradation),
        count(result.parameters),
        speedup,
        saved,
    )


def _by_model(reports: Sequence[Report]) -> Iterator[tuple[str, list[Report]]]:
    """The studies of each model and method, one per task; a second study of one task stands for itself."""
    groups: dict[str, list[list[Report]]] = {}
    for report in reports:
        turns = groups.setdefault(report.treated_model, [])
        for studies in turns:
            if all(other.task != report.task for other in studies):
                studies.append(report)
                break
        else:
            turns.append([report])
    for model, turns in groups.items():
        for studies, name in zip(turns, _told_apart(turns), strict=True):
            yield f"{model} ({name})" if name else model, studies


def _told_apart(turns: Sequence[Sequence[Report]]) -> list[str]:
    """In what the recipes of the first studies differ; the studies' own names where they do not. Nothing for one."""
    if len(turns) == 1:
        return [""]
    recipes = [studies[0].recipe for studies in turns]
    differing = [name for name in recipes[0] if any(recipe.get(name) != recipes[0][name] for recipe in recipes)]
    names = [pairs({name: recipe.get(name) for name in differing}) for recipe in recipes]
    return names if len(set(names)) == len(names) else [studies[0].study for studies in turns]


def _answer(report: Report, delta: float) -> Result | None:
    return next((result for result in report.results if result.delta == delta), None)


def _dropped_cell(result: Result | None) -> str:
    if result is None:
        return NOTHING
    return f"{len(result.dropped)}{UNRELIABLE if result.verdict == 'held_out disagrees' else ''}"
