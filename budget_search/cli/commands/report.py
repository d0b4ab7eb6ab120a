"""``budget-search report``: print the report of a study, or of several studies side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budget_search.cli.options import add_studies_dir, delta_argument, studies_dir
from budget_search.core.errors import UsageError
from budget_search.core.paths import require_valid_path
from budget_search.report.renderers import FORMATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from budget_search.storage.study_folder import StudyFolder

HELP = "print the report of a study, or of several side by side"
DESCRIPTION = (
    "STUDY is the name of a study, a unique prefix of it, or a path. Several studies are compared by the layers "
    "dropped per task and delta, and by the savings."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    parser.add_argument("--delta", type=delta_argument, action="append", metavar="D", help="only these deltas")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", metavar="FILE", help="write the report to FILE instead")
    parser.add_argument(
        "--curves",
        action="store_true",
        help="print the mean score over tasks by strategy and number of dropped layers instead",
    )
    parser.add_argument(
        "--reference",
        action="append",
        metavar="MODEL",
        help="first fine-tune another model with the same recipe, examples and seeds, and add it to the study's "
        "report; may be repeated",
    )
    parser.add_argument("--offline", action="store_true", help="look for that model in local files and caches only")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with that model")
    parser.add_argument("--wait", action="store_true", help="wait while another command is working on the study")
    parser.add_argument(
        "--plots", metavar="DIR", help="also write the plots of one study, or of --curves, as PNG and SVG"
    )
    add_studies_dir(parser)


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.app.study_report import report_for
    from budget_search.report.renderers import render, render_averages
    from budget_search.storage.study_folder import find_study

    _require_valid(arguments)
    folders = [find_study(name, studies_dir(arguments)) for name in arguments.studies]
    if arguments.reference:
        _add_references(folders, arguments)
    reports = [report_for(folder, tuple(arguments.delta or ())) for folder in folders]
    text = (render_averages if arguments.curves else render)(reports, arguments.format).rstrip("\n")
    if arguments.plots:
        from budget_search.report.plots.strategy_plots import draw_averages
        from budget_search.report.plots.study_plots import draw

        figures = draw_averages(reports) if arguments.curves else draw(reports[0])
        save_plots(figures, Path(arguments.plots), "--plots")
    if arguments.output is None:
        print(text, flush=True)
    else:
        write_text(Path(arguments.output), text, "--output")
    return 0


def _require_valid(arguments: argparse.Namespace) -> None:
    """Raises UsageError for unusable paths, and for options that contradict each other."""
    for name in arguments.studies:
        require_valid_path("STUDY", name)
    for model in arguments.reference or ():
        require_valid_path("--reference", model)
    require_valid_path("--output", arguments.output)
    require_valid_path("--plots", arguments.plots)
    if arguments.plots and len(arguments.studies) > 1 and not arguments.curves:
        raise UsageError(f"--plots draws one study (several with --curves), received {len(arguments.studies)}")
    if arguments.delta and arguments.curves:
        raise UsageError("--curves shows every number of dropped layers and takes no --delta; leave --delta out")


def _add_references(folders: Sequence[StudyFolder], arguments: argparse.Namespace) -> None:
    from budget_search.app.reference_models import ExecutionOptions, with_references
    from budget_search.app.resolve import resolve_references
    from budget_search.cli.progress import Console

    sources = resolve_references(arguments.reference, arguments.offline)
    options = ExecutionOptions(trust_remote_code=arguments.trust_remote_code, wait=arguments.wait)
    console = Console()
    for folder in folders:
        with_references(folder, sources, options, console)


def write_text(path: Path, text: str, option: str) -> None:
    """Raises UsageError, which names the option."""
    try:
        path.write_text(text + "\n", encoding="utf8")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def save_plots(figures: Mapping[str, Figure], folder: Path, option: str) -> None:
    """Write figures as PNG and SVG. Raises UsageError, which names the option."""
    from budget_search.report.plots.figures import save

    try:
        written = save(figures, folder)
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {error.strerror}") from error
    print(f"wrote {len(written)} plots to {folder}", file=sys.stderr)
