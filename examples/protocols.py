"""Compares the search methods of two papers with ``auto`` on one task and model: cost and answers.

    python examples/protocols.py --task demo --model demo

Takes the options of a search and creates three studies: `top` drops layers from the top at every depth (Poor Man's
BERT), `greedy` drops one layer after another (Greedy-layer pruning), `auto` is the default strategy. All three screen
with short fine-tunes and confirm with the same seeds, so their answers can be compared. The table also shows the cost
of the papers' own protocols: the full recipe for every set, one seed, no confirmation. Repeat the command to resume.
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
from budget_search.report.comparisons.paper_protocols import protocols
from budget_search.report.report import Report


def searched(request: Request) -> Iterator[tuple[str, Report]]:
    """One study per strategy, all of the same task, model and recipe."""
    for strategy in ("top", "greedy", "auto"):
        options = dataclasses.asdict(request) | {"strategy": strategy}
        options["study"] = f"{slug(request.task)}__{slug(request.model)}__{strategy}"
        yield strategy, bs.search(**options.pop("recipe_changes"), **options)


def row(strategy: str, report: Report) -> tuple[str, ...]:
    """Cost of the paper's protocol and of the search, in full fine-tune equivalents, and the answers."""
    scan, greedy, _ = protocols(report)
    papers = {"top": scan, "greedy": greedy}.get(strategy)
    answers = (
        f"{result.depth} ({compact_indices(result.kept)})\n{points(result.degradation)} lost, "
        f"at most {points(result.degradation_upper)}"
        for result in report.results
    )
    paper_cost = f"{papers.equivalents:.1f}" if papers else "-"
    return strategy, paper_cost, f"{report.cost.full_fine_tune_equivalents:.1f}", *answers


def main(*options: str) -> None:
    request = request_from(parse(["run", *options]))
    rows = [row(strategy, report) for strategy, report in searched(request)]
    deltas = (f"within {100 * delta:g}" for delta in request.deltas)
    print(tabulate(rows, ("strategy", "cost in the paper", "cost here", *deltas), disable_numparse=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
