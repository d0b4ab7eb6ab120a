"""Compares the times that `plan` predicts with the times of real evaluations, on a real task and model.

    python examples/plan_check.py --cpu-seconds --task sst2 --data-dir sst2 --model MODEL --recipe quick

Prints the predicted and the measured seconds of an evaluation (training and scoring) for several depths and rungs.
--cpu-seconds measures the CPU time of the process instead of wall-clock time, for a machine with other load.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from budget_search.cli.options import request_from
from budget_search.cli.parser import parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-seconds", action="store_true")
    own, options = parser.parse_known_args()
    if own.cpu_seconds:
        # Before any module imports perf_counter.
        time.perf_counter = time.process_time
    request = request_from(parse(["plan", *options]))

    from budget_search.app.create_study import create
    from budget_search.app.resolve import resolve_request
    from budget_search.app.search_settings import search_settings
    from budget_search.cli.progress import Console
    from budget_search.core.layers import LayerSet
    from budget_search.core.limits import Limits
    from budget_search.core.trial import Job, TrialKey
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import resolve_device
    from budget_search.engine.evaluation import EvaluationContext, run_job
    from budget_search.engine.measurements.evaluation_cost import evaluation_costs
    from budget_search.engine.measurements.speed import measure_speed, probed_depths
    from budget_search.storage.study_folder import StudyFolder, stored_config

    resolved = resolve_request(request)
    device = resolve_device(resolved.config.device, resolved.config.precision)
    with tempfile.TemporaryDirectory() as scratch:
        draft = StudyFolder(Path(scratch) / "study")
        create(dataclasses.replace(resolved, folder=draft), device, Console())
        facts, task = stored_config(draft)["facts"], EncodedTask.load(draft.examples)
        context = EvaluationContext(
            draft, resolved.pretrained.folder, resolved.pretrained.name, resolved.config.recipe, device
        )
        settings = search_settings(resolved, facts, task, Limits(), 1)
        rows = []
        for depth in reversed(probed_depths(settings.total)):
            costs = evaluation_costs(settings, measure_speed(context, settings.total), task, context)
            layers = LayerSet(tuple(range(depth)), settings.total)
            for rung, split in ((settings.screen_rung, "selection"), (1.0, "certification")):
                trial = run_job(context, Job(TrialKey(layers, rung, 42), split))  # type: ignore[arg-type]
                predicted = costs.training_seconds(rung, depth) + costs.evaluation_seconds(split, depth)
                measured = trial.train_seconds + trial.evaluation_seconds
                rows.append(
                    (depth, f"{rung:.3g}", f"{predicted:.1f}", f"{measured:.1f}", f"{predicted / measured:.2f}")
                )
                print(*rows[-1], file=sys.stderr, flush=True)
    print(tabulate(rows, headers=("layers", "rung", "predicted", "measured", "ratio")))


if __name__ == "__main__":
    main()
