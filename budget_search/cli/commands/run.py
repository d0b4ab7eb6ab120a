"""``budget-search run``, the default: search, print the report, export the answer."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budget_search.cli.options import add_search_options, request_from
from budget_search.core.errors import BudgetSearchError
from budget_search.storage.credentials import OPTION, VARIABLE, mask_passwords

HELP = "search (the default)"
DESCRIPTION = (
    "Search for the fewest layers within each delta. Run the same command again to go on with an interrupted search, "
    "or with another --delta to reuse everything measured so far."
)
INTERRUPTED = 130
ONLY_THE_FULL_MODEL = 3

add_options = add_search_options


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    request = request_from(arguments)
    from budget_search.app.earlier_answers import best_so_far
    from budget_search.app.resolve import resolve_request
    from budget_search.app.search import answer
    from budget_search.cli.commands.export import export_and_tell
    from budget_search.cli.progress import Console
    from budget_search.models.export_folder import refuse_foreign

    if arguments.dry_run:
        from budget_search.cli.commands import plan

        return plan.run(arguments, received)
    command = mask_passwords(shlex.join(["budget-search", *received]))
    if request.output:
        refuse_foreign(Path(request.output))
    found = resolve_request(request)
    console = Console(quiet=bool(arguments.quiet))
    console.say(f"budget-search: {request.task} with {request.model}, study {found.folder.path}")
    try:
        report = answer(found, console, _without_places(received))
    except KeyboardInterrupt:
        console.close()
        with contextlib.suppress(BudgetSearchError):
            print(f"interrupted. {best_so_far(found)}", file=sys.stderr)
        where = f" (with {VARIABLE} as it was)" if request.storage and OPTION not in command else ""
        print(f"To go on{where}: {command}", file=sys.stderr)
        return INTERRUPTED
    finally:
        console.close()
    if (page := found.folder.page).exists():
        console.say(f"report with pictures: {page}")
    trust = request.trust_remote_code
    if request.output:
        try:
            export_and_tell(found.folder, report, min(request.deltas), Path(request.output), trust=trust)
        except BudgetSearchError:
            # The search is finished all the same.
            _print(report, arguments.format or "table")
            raise
    _print(report, arguments.format or "table", exported=request.output)
    none_found = all(result.is_full for result in report.results)
    return ONLY_THE_FULL_MODEL if none_found and arguments.fail_if_none else 0


def _without_places(received: Sequence[str]) -> str:
    """The command for whoever reads the report: with base names, not with where things lie on this machine."""
    return shlex.join(["budget-search", *map(_base_name, received)])


def _base_name(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if "://" in value:
        # An address may hold a password.
        value = "URL"
    elif Path(value).is_absolute() or value.startswith(".."):
        value = Path(value).name
    return option + equals + value


def _print(report: Any, form: str, exported: str | None = None) -> None:
    from budget_search.report.renderers import render

    print(render([report], form, exported).rstrip("\n"), flush=True)
