"""The papers' ways of searching and this tool's, on one task and model: what each costs and what it answers.

    python examples/protocols.py --task demo --model demo

Takes the options of a search and makes three studies: `top` looks at every depth from the top (Poor Man's BERT),
`greedy` drops one layer after the other (greedy-layer pruning), `auto` is this tool's own. All three screen with short
fine-tunes and confirm with the same seeds, so that their answers compare. Beside them stands what the papers' own
protocols would cost: the full recipe for every set, one seed, nothing confirmed. Run it again to go on where it was.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

from tabulate import tabulate

import budget_search as bs
from budget_search.app.request import Request
from budget_search.cli.options import request_from
from budget_search.cli.parser import parse
from budget_search.core.config import slug
from budget_search.core.formatting import points
from budget_search.core.layers import compact_indices
from budget_search.report.paper_protocols import protocols
from budget_search.report.report import Report


def searched(request: Request) -> Iterator[tuple[str, Report]]:
    """One study per strategy, all of the same task, model and recipe."""
    for strategy in ("top", "greedy", "auto"):
        options = dataclasses.asdict(request) | {"strategy": strategy}
        options["study"] = f"{slug(request.task)}__{slug(request.model)}__{strategy}"
        yield strategy, bs.search(**options.pop("recipe_changes"), **options)


def row(strategy: str, report: Report) -> tuple[str, ...]:
    """The paper's own price and the measured one, in full fine-tunes of the full model; every answer and its loss."""
    scan, greedy, _ = protocols(report)
    papers = {"top": scan, "greedy": greedy}.get(strategy)
    answers = (
        f"{result.depth} ({compact_indices(result.kept)})\n{points(result.degradation)} lost, "
        f"at most {points(result.degradation_upper)}"
        for result in report.results
    )
    price = f"{papers.equivalents:.1f}" if papers else "-"
    return strategy, price, f"{report.cost.full_fine_tune_equivalents:.1f}", *answers


def main(*options: str) -> None:
    request = request_from(parse(["run", *options]))
    rows = [row(strategy, report) for strategy, report in searched(request)]
    deltas = (f"within {100 * delta:g}" for delta in request.deltas)
    print(tabulate(rows, ("strategy", "the paper's price", "price here", *deltas), disable_numparse=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
