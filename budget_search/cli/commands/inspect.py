"""``budget-search inspect``: layer-wise probes and similarities of a study's model, compared with its answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from budget_search.cli.options import add_studies_dir, studies_dir
from budget_search.core.paths import require_valid_path

HELP = "measure probes and similarities of every layer of a study's model"
DESCRIPTION = (
    "Measure probes and similarities of every layer of a finished study's full model, and compare them with the "
    "results of its search. STUDY is the name of a study, a unique prefix of it, or a path."
)
FORMATS = ("table", "markdown", "json")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--model", help="the pre-trained model, if the name in the study does not suffice to find it")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", metavar="DIR", help="also write text, JSON and plots (PNG, SVG) there")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    add_studies_dir(parser)


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.app.inspect_study import inspect_study
    from budget_search.cli.commands.report import save_plots, write_text
    from budget_search.cli.progress import Console
    from budget_search.report.renderers.inspection import render_inspection
    from budget_search.storage.study_folder import find_study

    require_valid_path("STUDY", arguments.study)
    require_valid_path("--output", arguments.output)
    folder = find_study(arguments.study, studies_dir(arguments))
    inspection = inspect_study(folder, Console(), model=arguments.model, trust_remote_code=arguments.trust_remote_code)
    if arguments.output:
        from budget_search.report.plots.layer_plots import draw_inspection

        output = Path(arguments.output)
        save_plots(draw_inspection(inspection), output, "--output")
        for form, name in (("markdown", "inspection.md"), ("json", "inspection.json")):
            write_text(output / name, render_inspection(inspection, form), "--output")
    print(render_inspection(inspection, arguments.format), flush=True)
    return 0
