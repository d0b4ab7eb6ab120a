"""``budget-search report``: print what a study has found, or several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budget_search.cli.options import add_studies_dir, delta_argument
from budget_search.cli.output import DEFAULT_STUDIES, save_plots, write_text
from budget_search.core.errors import UsageError
from budget_search.core.paths import require_valid_path
from budget_search.report.renderers import FORMATS

HELP = "print what a study has found, or several side by side"
DESCRIPTION = (
    "STUDY is a study's name, the unique beginning of one, or a path. Several studies are set side by side: layers "
    "dropped per task and delta, and what that saves."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    parser.add_argument("--delta", type=delta_argument, action="append", metavar="D", help="only these deltas")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", metavar="FILE", help="write to a file instead")
    parser.add_argument(
        "--curves",
        action="store_true",
        help="mean score over the studies' tasks by strategy and number of dropped layers, instead",
    )
    parser.add_argument(
        "--reference",
        action="append",
        metavar="MODEL",
        help="first fine-tune another model once, by the same recipe on the same examples with the same seeds, and set "
        "it beside the answers, now and from now on; may be repeated",
    )
    parser.add_argument("--offline", action="store_true", help="find that model in local files and caches only")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that it brings")
    parser.add_argument("--wait", action="store_true", help="wait for another command that works on the same study")
    parser.add_argument(
        "--plots", metavar="DIR", help="also write the pictures there, as PNG and SVG; of one study, or of --curves"
    )
    add_studies_dir(parser)


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.app.study_report import report_for
    from budget_search.report.renderers import render
    from budget_search.report.renderers.strategy_averages import render_averages
    from budget_search.storage.study_folder import find_study

    for name in arguments.studies:
        require_valid_path("STUDY", name)
    for model in arguments.reference or ():
        require_valid_path("--reference", model)
    require_valid_path("--output", arguments.output)
    require_valid_path("--plots", arguments.plots)
    if arguments.plots and len(arguments.studies) > 1 and not arguments.curves:
        raise UsageError(f"--plots draws one study (several with --curves), received {len(arguments.studies)}")
    if arguments.delta and arguments.curves:
        raise UsageError("--curves shows every number of dropped layers, whatever the loss; leave --delta out")
    folders = [find_study(name, arguments.studies_dir or DEFAULT_STUDIES) for name in arguments.studies]
    if arguments.reference:
        _set_beside(folders, arguments)
    reports = [report_for(folder, tuple(arguments.delta or ())) for folder in folders]
    text = (render_averages if arguments.curves else render)(reports, arguments.format).rstrip("\n")
    if arguments.plots:
        from budget_search.report.plots.figures import draw, draw_averages

        figures = draw_averages(reports) if arguments.curves else draw(reports[0])
        save_plots(figures, Path(arguments.plots), "--plots")
    if arguments.output is None:
        print(text, flush=True)
        return 0
    write_text(Path(arguments.output), text, "--output")
    return 0


def _set_beside(folders: Sequence[Any], arguments: argparse.Namespace) -> None:
    from budget_search.app.reference_models import ExecutionOptions, with_references
    from budget_search.app.resolve import references_of
    from budget_search.cli.progress import Console

    sources = references_of(arguments.reference, arguments.offline)
    options = ExecutionOptions(trust_remote_code=arguments.trust_remote_code, wait=arguments.wait)
    console = Console()
    for folder in folders:
        with_references(folder, sources, options, console)
