"""``budget-search plan``: what a search would run, and its cost."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from budget_search.cli.options import add_search_options, request_from
from budget_search.core.errors import UsageError
from budget_search.core.formatting import duration, pairs, plural, printable, tolerance
from budget_search.core.limits import Limits

if TYPE_CHECKING:
    from budget_search.app.forecast import Forecast, Range
    from budget_search.app.resolve import ResolvedRequest
    from budget_search.cli.progress import Console

HELP = "estimate what a search would run and what it would cost"
DESCRIPTION = (
    "Takes the options of `run`. Times a few steps on this device, simulates the search on generated models, and "
    "prints the expected evaluations, hours and bytes. Trains no model and leaves no files."
)
# Depths of the table: all layers, three quarters, half, a quarter.
SHOWN_SHARES = (1.0, 0.75, 0.5, 0.25)

add_options = add_search_options


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    if arguments.format not in (None, "table", "json"):
        raise UsageError(f"--format {arguments.format}: a plan is printed as table or json")
    from budget_search.app.resolve import resolve_request
    from budget_search.cli.progress import Console

    resolved = resolve_request(request_from(arguments))
    console = Console(quiet=bool(arguments.quiet))
    try:
        expected = _forecast(resolved, console)
    finally:
        console.close()
    if arguments.format == "json":
        from budget_search.core.serialization import to_plain

        print(json.dumps(to_plain(expected), indent=2, allow_nan=False), flush=True)
    else:
        print(forecast_text(expected), flush=True)
    return 0


def _forecast(resolved: ResolvedRequest, console: Console) -> Forecast:
    # Imported objects are never freed; searching them for garbage would take a tenth of the run time.
    gc.disable()
    try:
        from budget_search.app.forecast import forecast
    finally:
        gc.freeze()
        gc.enable()
    return forecast(resolved, console)


def forecast_text(forecast: Forecast) -> str:
    """The forecast as text: what would run, seconds per evaluation, totals, and what can be certified."""
    deltas = ", ".join(tolerance(delta) for delta in forecast.deltas)
    asked = Limits.from_options(forecast.question)
    limits = f", with {asked.compact}" if asked.given else ""
    facts = [
        ("task", f"{printable(forecast.task)}: " + ", ".join(f"{n} {c:,}" for n, c in forecast.examples.items())),
        ("model", f"{printable(forecast.model)}, {plural(forecast.layers_total, 'layer')}"),
        ("question", f"the fewest layers within {deltas}{limits}"),
        ("recipe", pairs(forecast.recipe)),
        ("device", f"{pairs(forecast.device)}; {plural(forecast.workers, 'evaluation')} at a time"),
        ("study", printable(forecast.study)),
    ]
    lines = [
        *(f"{name:<10}{text}" for name, text in facts),
        "",
        "Seconds per evaluation, training and scoring, from a timed probe on this device:",
        "",
        _seconds_table(forecast),
        "",
        *_totals(forecast),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _seconds_table(forecast: Forecast) -> str:
    from tabulate import tabulate

    total = forecast.layers_total
    depths = sorted({max(1, round(share * total)) for share in SHOWN_SHARES}, reverse=True)
    seconds = {(each.rung, each.depth): each.seconds for each in forecast.seconds_per_evaluation}
    rows = []
    for rung in sorted({rung for rung, _ in seconds}):
        steps = next(each.steps for each in forecast.seconds_per_evaluation if each.rung == rung)
        kind = "full" if rung == 1 else f"{100 * rung:.3g} %"
        rows.append((kind, f"{steps:,}", *(duration(seconds[rung, depth]) for depth in depths)))
    headers = ("recipe", "steps", *(plural(depth, "layer") for depth in depths))
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=("right",) * len(headers))


def _totals(forecast: Forecast) -> Iterator[str]:
    known = forecast.known
    if known.answered:
        evaluations = plural(known.evaluations, "evaluation")
        yield f"The study has the answers already ({evaluations}): nothing is left to run."
    else:
        if known.evaluations:
            yield (
                f"Finished already: {plural(known.evaluations, 'evaluation')}, {known.equivalents:.1f} equivalents; "
                "they are reused and excluded below."
            )
        yield f"In 9 of 10 searches ({forecast.rehearsals} were simulated on generated models):"
        yield f"  evaluations        {_between(forecast.evaluations, '{:.0f}')}"
        yield f"  equivalents        {_between(forecast.equivalents, '{:.1f}')} full fine-tunes of the full model"
        low, median, high = (3600 * getattr(forecast.hours, name) for name in ("low", "median", "high"))
        yield f"  time               {duration(low)} to {duration(high)}, median {duration(median)}"
        free = forecast.disk_free_bytes
        short = ", more than is free" if forecast.disk_bytes > free else ""
        yield f"  disk               up to {_bytes(forecast.disk_bytes)} during the search{short}; {_bytes(free)} free"
    smallest = forecast.resolution.smallest_certifiable_delta
    about = (
        "No loss can be certified."
        if smallest is None
        else f"A loss of about {100 * smallest:.2f} points can be certified."
    )
    yield ""
    yield f"{about} {forecast.resolution.explanation}"


def _between(amount: Range, form: str) -> str:
    low, median, high = (form.format(value) for value in (amount.low, amount.median, amount.high))
    return f"{low} to {high}, median {median}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
