"""Does the timed probe of `plan` tell how long evaluations take? Both in turn, on a real task and model.

    python examples/plan_check.py --cpu-seconds --task sst2 --data-dir sst2 --model MODEL --recipe quick

Prints, per depth and rung, the seconds told beforehand and the seconds of a real evaluation (training and scoring).
--cpu-seconds counts what the one calculating thread worked rather than what went by, for a machine that others use too.
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
        # Before anything else takes the clock's name.
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
    from budget_search.engine.evaluation_cost import EvaluationCosts
    from budget_search.engine.speed import measure_speed, probed_depths
    from budget_search.storage.study_folder import StudyFolder, stored_config

    found = resolve_request(request)
    device = resolve_device(found.config.device, found.config.precision)
    with tempfile.TemporaryDirectory() as place:
        draft = StudyFolder(Path(place) / "study")
        create(dataclasses.replace(found, folder=draft), device, Console())
        facts, task = stored_config(draft)["facts"], EncodedTask.load(draft.examples)
        context = EvaluationContext(draft, found.parent.folder, found.parent.name, found.config.recipe, device)
        settings = search_settings(found, facts, task, Limits(), 1)
        rows = []
        for depth in reversed(probed_depths(settings.total)):
            prices = EvaluationCosts.of(settings, measure_speed(context, settings.total), task, context)
            layers = LayerSet(tuple(range(depth)), settings.total)
            for rung, split in ((settings.screen_rung, "selection"), (1.0, "certification")):
                trial = run_job(context, Job(TrialKey(layers, rung, 42), split))  # type: ignore[arg-type]
                told = prices.training_seconds(rung, depth) + prices.evaluation_seconds(split, depth)
                took = trial.train_seconds + trial.evaluation_seconds
                rows.append((depth, f"{rung:.3g}", f"{told:.1f}", f"{took:.1f}", f"{told / took:.2f}"))
                print(*rows[-1], file=sys.stderr, flush=True)
    print(tabulate(rows, headers=("layers", "rung", "told", "took", "told / took")))


if __name__ == "__main__":
    main()
