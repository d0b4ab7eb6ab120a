"""Where a request leads: its task and model found, and the study that they make. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from budget_search.app.request import Request
from budget_search.app.warm_start import WarmStart, warm_start_from
from budget_search.core.config import SearchConfig
from budget_search.data.tasks import TaskSource, resolve_task, task_digest
from budget_search.models.pretrained import PretrainedSource, resolve_model
from budget_search.storage.study_folder import StudyFolder, require_writable, study_path


@dataclass(frozen=True)
class ResolvedRequest:
    """A request with its task and model located, and the study it belongs to."""

    request: Request
    source: TaskSource
    pretrained: PretrainedSource
    config: SearchConfig
    folder: StudyFolder
    warm_start: WarmStart | None = None
    references: tuple[PretrainedSource, ...] = ()


def resolve_request(request: Request) -> ResolvedRequest:
    """Find task, model and study; reads no examples, loads no model, writes nothing. Raises UsageError."""
    source = resolve_task(
        request.task,
        data_dir=request.data_dir,
        text_columns=request.text_columns,
        label_column=request.label_column,
        metric=request.metric,
        validation=request.validation,
    )
    pretrained = resolve_model(request.model, offline=request.offline)
    recipe = request.recipe_from(source.spec.recipe)
    config = SearchConfig(
        task=source.name,
        task_digest=task_digest(source, offline=request.offline),
        metric=source.spec.metric,
        text_columns=tuple(source.spec.text_columns),
        label_column=source.spec.label_column,
        model=pretrained.name,
        model_digest=pretrained.digest,
        recipe=recipe,
        splits=request.splits_for(recipe),
        device=request.device,
        precision=request.precision,
    )
    folder = StudyFolder(study_path(request.studies_dir, request.study or config.study_name))
    if not folder.config.exists():
        require_writable(folder)
    warm_start = warm_start_from(request.start_from, request.studies_dir) if request.start_from else None
    return ResolvedRequest(
        request, source, pretrained, config, folder, warm_start, references_of(request.reference, request.offline)
    )


def references_of(models: Iterable[str], offline: bool) -> tuple[PretrainedSource, ...]:
    """The models to set beside the answers, each once. Raises UsageError."""
    return tuple(dict.fromkeys(resolve_model(model, offline=offline, option="--reference") for model in models))
