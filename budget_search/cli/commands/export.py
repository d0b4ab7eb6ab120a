"""``budget-search export``: write an answer as a plain Hugging Face checkpoint, and upload it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budget_search.cli.options import add_studies_dir, delta_argument, studies_dir
from budget_search.core.errors import UsageError
from budget_search.core.paths import require_valid_path

if TYPE_CHECKING:
    from budget_search.report.report import Report
    from budget_search.storage.study_folder import StudyFolder

HELP = "write the answer as a plain Hugging Face checkpoint"
DESCRIPTION = "Write an answer as a checkpoint. STUDY is the name of a study, a unique prefix of it, or a path."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument(
        "--delta", type=delta_argument, action="append", metavar="D", required=True, help="the delta of the answer"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder, or an earlier export")
    parser.add_argument("--push-to-hub", metavar="REPO", help="also upload it to the hub, as name or org/name")
    parser.add_argument("--private", action="store_true", help="make the uploaded repository private")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    add_studies_dir(parser)


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.app.study_report import report_for
    from budget_search.models.export_folder import push, refuse_foreign, require_pushable
    from budget_search.storage.study_folder import find_study

    if len(arguments.delta) != 1:
        raise UsageError(f"export takes one --delta, received {len(arguments.delta)}")
    require_valid_path("STUDY", arguments.study)
    require_valid_path("--output", arguments.output)
    refuse_foreign(Path(arguments.output))
    repository = arguments.push_to_hub
    if repository is not None:
        require_pushable(repository)
    elif arguments.private:
        raise UsageError("--private applies to --push-to-hub REPO; add that option, or leave --private out")
    folder = find_study(arguments.study, studies_dir(arguments))
    report = report_for(folder, tuple(arguments.delta))
    trust = arguments.trust_remote_code
    export_and_report(folder, report, arguments.delta[0], Path(arguments.output), name=repository, trust=trust)
    if repository is not None:
        address = push(Path(arguments.output), repository, private=arguments.private)
        print(f"uploaded to {address}", file=sys.stderr)
    return 0


def export_and_report(
    folder: StudyFolder, report: Report, delta: float, output: Path, *, trust: bool, name: str | None = None
) -> None:
    """Export an answer, and print to stderr how the export was checked."""
    from budget_search.app.export_answer import export_answer

    exported = export_answer(folder, report, delta, output, name, trust_remote_code=trust)
    print(
        f"exported to {output}: re-loaded, it gives the same logits on {exported.examples:,} held-out examples; "
        f"held-out score {exported.held_out_score:.2f}",
        file=sys.stderr,
    )
