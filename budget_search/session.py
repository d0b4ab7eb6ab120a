"""From a request to a report: find the task and the model, open the study, search, measure, tell.

The only place where the parts meet. Everything that can be wrong with the input is found before the study's folder
is made.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budget_search.config import SearchConfig
from budget_search.environment import versions
from budget_search.errors import StudyError
from budget_search.parent import Parent, resolve_model
from budget_search.report import Report
from budget_search.request import Request, study_path
from budget_search.store import StudyFolder, StudyStore, require_storage, require_writable, write_json, write_whole
from budget_search.tasks import TaskSource, resolve_task, task_digest

if TYPE_CHECKING:
    from budget_search.device import Device
    from budget_search.encode import EncodedTask
    from budget_search.layers import LayerSet
    from budget_search.loop import Observer, Plan
    from budget_search.trial import Job, Trial
    from budget_search.verdict import Judgement

# Screens: as short as still ranks layer sets, in steps and as a fraction of the recipe. On a recorded 6-layer table 31
# steps ranked sets alike whatever the seed, and wrongly; 125 steps ranked them well.
SCREEN_STEPS = 150
SHORTEST_RUNG = 1 / 24
LONGEST_RUNG = 1 / 2
# What is spent on screens in all, in full fine-tunes, when a screened set keeps this share of the layers.
SCREEN_EQUIVALENTS = 2.0
MEAN_SHARE_OF_LAYERS = 0.58
# What config.json holds beside the configuration: found out when the study was made.
FACTS = ("layers_total", "layer_parameters", "undroppable", "device", "created")
SCREENS = (12, 60)


@dataclass(frozen=True)
class Found:
    """A request with its task and model located, and the study it belongs to."""

    request: Request
    source: TaskSource
    parent: Parent
    config: SearchConfig
    folder: StudyFolder


def locate(request: Request) -> Found:
    """Find task, model and study; reads no examples, loads no model, writes nothing. Raises UsageError."""
    source = resolve_task(
        request.task,
        data_dir=request.data_dir,
        text_columns=request.text_columns,
        label_column=request.label_column,
        metric=request.metric,
        validation=request.validation,
    )
    parent = resolve_model(request.model, offline=request.offline)
    recipe = request.recipe_from(source.spec.recipe)
    config = SearchConfig(
        task=source.name,
        task_digest=task_digest(source, offline=request.offline),
        metric=source.spec.metric,
        text_columns=tuple(source.spec.text_columns),
        label_column=source.spec.label_column,
        model=parent.name,
        model_digest=parent.digest,
        recipe=recipe,
        splits=request.splits_for(recipe),
        device=request.device,
        precision=request.precision,
    )
    folder = StudyFolder(study_path(request.studies_dir, request.study or config.study_name))
    if not folder.config.exists():
        require_writable(folder)
    return Found(request, source, parent, config, folder)


def finished_report(found: Found) -> Report | None:
    """The report of a study that has answered this very question for every delta asked; else None."""
    if not found.folder.report.is_file():
        return None
    _require_same_config(found)
    report = read_report(found.folder)
    if report.finished is None or report.question != found.request.question:
        return None
    answered = {in_points(result.delta) for result in report.results}
    return report if {in_points(delta) for delta in found.request.deltas} <= answered else None


def read_report(folder: StudyFolder) -> Report:
    """Raises StudyError when there is none, or it is damaged."""
    try:
        fields = json.loads(folder.report.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise StudyError(f"the study {folder.path.name} has no report yet; run the search that made it again") from None
    except (OSError, ValueError) as error:
        raise StudyError(
            f"report.json of the study {folder.path.name} is damaged ({error}); delete it and run the search again, "
            "which writes it anew from the recorded trials"
        ) from error
    try:
        return Report.from_json(fields)
    except StudyError as error:
        raise StudyError(f"report.json of the study {folder.path.name} cannot be used: {error}") from error


def answer(found: Found, observer: Observer, command: str = "") -> Report:
    """The report for a request: at once where the study has answered it already, else after a search."""
    report = finished_report(found) or run(found, observer, command)
    return dataclasses.replace(reduced(report, found.request.deltas), folder=found.folder.path)


def reduced(report: Report, deltas: Iterable[float]) -> Report:
    """With the answers for these deltas alone. Raises UsageError for one that was not asked."""
    return dataclasses.replace(report, results=tuple(report.result(delta) for delta in deltas))


def report_for(folder: StudyFolder, deltas: tuple[float, ...]) -> Report:
    """A study's report, reduced to these deltas if any are given. Raises StudyError and UsageError."""
    report = dataclasses.replace(read_report(folder), folder=folder.path)
    return reduced(report, deltas) if deltas else report


def best_so_far(found: Found) -> str:
    """One sentence for somebody who interrupted the search: what is confirmed by now."""
    from budget_search.layers import compact_indices

    if not found.folder.config.exists():
        return "Nothing was measured yet."
    facts = stored_config(found.folder)["facts"]
    total = int(facts["layers_total"])
    history = StudyStore.open(found.folder.path.name, total, folder=found.folder, storage=found.request.storage).history
    scores: dict[tuple[int, ...], dict[int, float]] = {}
    for trial in history:
        if trial.split == "certification" and trial.score is not None:
            scores.setdefault(trial.layers.kept, {})[trial.key.seed] = trial.score
    seeds = set(found.request.confirmation_seeds)
    means = {kept: sum(by[s] for s in seeds) / len(seeds) for kept, by in scores.items() if seeds <= by.keys()}
    baseline = means.pop(tuple(range(total)), None)
    found_so_far = []
    for delta in found.request.deltas:
        holding = [kept for kept, mean in means.items() if baseline is not None and baseline - mean <= in_points(delta)]
        if holding:
            kept = min(holding, key=lambda kept: (len(kept), -means[kept]))
            found_so_far.append(f"within {in_points(delta):g} points layers {compact_indices(kept)} of {total} hold")
    best = f"So far {', '.join(found_so_far)}" if found_so_far else "No answer is confirmed yet"
    return f"{best}; {len(history)} evaluations are kept."


def run(found: Found, observer: Observer, command: str = "") -> Report:
    """Search, or go on with an interrupted search, and write the report.

    Raises BudgetSearchError; whatever was evaluated by then is kept.
    """
    if found.request.storage:
        require_storage(found.request.storage)
    from budget_search.creation import create
    from budget_search.device import resolve_device

    if found.folder.config.exists():
        _require_same_config(found)
        device = resolve_device(*_asked_device(found))
    else:
        device = resolve_device(found.config.device, found.config.precision)
        create(found, device, observer)
    with found.folder.locked():
        return _search(found, device, observer, command)


def _require_same_config(found: Found) -> None:
    stored = stored_config(found.folder)
    if stored["config"] != json.loads(json.dumps(found.config.to_json())):
        raise StudyError(
            f"the study {found.folder.path.name} was made with another task, model or recipe; "
            "choose another --study name, or leave it out"
        )


def stored_config(folder: StudyFolder) -> dict[str, Any]:
    """``config`` and ``facts`` of a study. Raises StudyError when the folder is none, or damaged."""
    try:
        stored = json.loads(folder.config.read_text(encoding="utf8"))
        config, facts = stored["config"], stored["facts"]
        return {"config": config, "facts": {name: facts[name] for name in FACTS}}
    except FileNotFoundError:
        raise StudyError(f"{folder.path} is not a study: there is no config.json in it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StudyError(
            f"config.json of the study {folder.path.name} is damaged ({reason}); restore it, or move the folder away"
        ) from error


def _asked_device(found: Found) -> tuple[str, str]:
    """What "auto" came to when the study was made, so that its trials stay comparable."""
    device = stored_config(found.folder)["facts"]["device"]
    return str(device["name"]), str(device["precision"])


def _search(found: Found, device: Device, observer: Observer, command: str) -> Report:
    from budget_search.device import default_workers
    from budget_search.dispatch import Workers
    from budget_search.encode import EncodedTask
    from budget_search.evaluate import Workplace
    from budget_search.evidence import Evidence
    from budget_search.finish import build_report, measure_answers, prune_weights
    from budget_search.loop import Search
    from budget_search.summary import Summary

    began = time.monotonic()
    request, facts = found.request, stored_config(found.folder)["facts"]
    task = EncodedTask.load(found.folder.examples)
    store = StudyStore.open(found.folder.path.name, facts["layers_total"], folder=found.folder, storage=request.storage)
    if store.facts.get("fingerprint", found.config.fingerprint) != found.config.fingerprint:
        raise StudyError(
            f"the storage holds a study {found.folder.path.name} of another task, model or recipe; "
            "choose another --study name"
        )
    store.note(fingerprint=found.config.fingerprint)
    workplace = Workplace(
        found.folder, found.parent.folder, found.parent.name, found.config.recipe, device, request.trust_remote_code
    )
    workers = Workers(workplace, request.workers or default_workers(device))
    plan = plan_for(found, facts, task, workers.count)
    if request.strategy == "contribution" and not request.layers:
        plan = dataclasses.replace(plan, similarities=_similarities(store, workplace))
    evidence = Evidence(found.folder, task, plan.total, plan.seeds)
    earlier = float(store.facts.get("wall_seconds", 0.0))

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        return evidence.compare(layers, "certification", confidence, among=search.confirmations().sets)

    def run_jobs(jobs: Sequence[Job]) -> Iterator[Trial]:
        for trial in workers.run(jobs):
            yield trial
            store.note(wall_seconds=earlier + time.monotonic() - began)

    search = Search(plan, store, run_jobs, judge, observer)
    observer.planned(plan, found.config, task, device, workers.count, store.history)
    search.run()
    # The report keeps the answers that were given before.
    answers = search.answers(in_points(delta) for delta in sorted({*request.deltas, *_earlier_deltas(found)}))
    observer.stage("scoring the answers on held_out and timing them")
    measured = measure_answers(workers, search, answers)
    summary = Summary(search, store.history, evidence, measured, facts["layer_parameters"])
    report = build_report(
        summary=summary,
        task=task,
        answers=answers,
        identity=_identity(found, facts, command),
        wall_seconds=earlier + time.monotonic() - began,
        notes=search.notes(),
    )
    write_report(found.folder, report)
    store.note(answer=[report.answer_sentence(result) for result in report.results])
    prune_weights(found.folder, search, answers.values())
    return report


def _earlier_deltas(found: Found) -> list[float]:
    """What was asked of this study before, in the same way; nothing when the old report cannot be read."""
    try:
        report = read_report(found.folder)
    except StudyError:
        return []
    return [result.delta for result in report.results] if report.question == found.request.question else []


def _identity(found: Found, facts: dict[str, Any], command: str) -> dict[str, Any]:
    return {
        "study": found.folder.path.name,
        "task": found.config.task,
        "model": found.config.model,
        "revision": found.config.model_digest,
        "created": facts["created"],
        "command": command,
        "versions": versions(),
        "device": facts["device"],
        "recipe": dataclasses.asdict(found.config.recipe),
        "question": found.request.question,
    }


def write_report(folder: StudyFolder, report: Report) -> None:
    """``report.json`` for programs, then for people ``report.md``, ``report.html`` and two of its pictures."""
    from budget_search.plots import content, draw
    from budget_search.render import render

    write_json(folder.report, report.to_json())
    for form, name in (("markdown", "report.md"), ("html", "report.html")):
        write_whole(folder.path / name, (render([report], form).rstrip("\n") + "\n").encode())
    pictures = draw(report)
    for name in ("frontier", "layers"):
        if name in pictures:
            write_whole(folder.path / f"{name}.png", content(pictures[name], "png"))


def plan_for(found: Found, facts: dict[str, Any], task: EncodedTask, width: int) -> Plan:
    """Everything the search decides beforehand. Raises UsageError for named layer sets the model does not have."""
    from budget_search.layers import LayerSet
    from budget_search.loop import Plan
    from budget_search.trial import SearchBudget

    request, recipe, total = found.request, found.config.recipe, int(facts["layers_total"])
    rung = screen_rung(recipe.steps(task.splits["train"].examples))
    screens = round(SCREEN_EQUIVALENTS / (rung * MEAN_SHARE_OF_LAYERS))
    return Plan(
        total=total,
        deltas=tuple(in_points(delta) for delta in request.deltas),
        strategy=request.strategy,
        seeds=request.confirmation_seeds,
        screen_seed=request.screen_seed,
        screen_rung=rung,
        evaluations=min(max(screens, SCREENS[0]), SCREENS[1], 2**total - 2),
        sampler=request.sampler,
        criterion=request.criterion,
        confidence=request.confidence,
        width=width,
        fixed=frozenset(facts["undroppable"]),
        named=tuple(LayerSet.parse(text, total) for text in request.layers),
        budget=SearchBudget(request.max_trials, request.max_hours),
    )


def in_points(delta: float) -> float:
    """A fraction as points, without the crumbs of 100 * 0.07."""
    return round(100 * delta, 10)


def screen_rung(full_steps: int) -> float:
    """The fraction of the recipe that a screen gets: enough steps to say something, half at the most."""
    return min(LONGEST_RUNG, max(SHORTEST_RUNG, SCREEN_STEPS / full_steps))


def _similarities(store: StudyStore, workplace: Any) -> tuple[float, ...]:
    from budget_search.similarity import layer_similarities

    known: Sequence[float] | None = store.facts.get("similarities")
    if known is None:
        known = layer_similarities(workplace)
        store.note(similarities=list(known))
    return tuple(known)
