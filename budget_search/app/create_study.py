"""A new study: read and tokenise the task, look at the model, and only then make the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from budget_search.app.measured_limits import with_measured_limits
from budget_search.core.errors import BudgetSearchError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.versions import versions
from budget_search.data.loading import load_task
from budget_search.data.splits import SplitTask, carve
from budget_search.data.texts import save_texts
from budget_search.data.tokenization import encode, max_input_length, takes_segments
from budget_search.engine.evaluation import EvaluationContext
from budget_search.models.keep_layers import find_layers, undroppable
from budget_search.models.layer_training import skippable_layers
from budget_search.models.pretrained import PretrainedSource, load_tokenizer, outline
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budget_search.app.observer import Observer
    from budget_search.app.resolve import ResolvedRequest
    from budget_search.core.config import Recipe, SearchConfig
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device


@dataclass(frozen=True)
class ModelReader:
    """A model as far as a new study needs it: how it reads texts, and what it is built of; no weights.

    Raises UsageError and UnsupportedModelError for a model that no study can be made of.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    shape: dict[str, Any]

    @classmethod
    def of(cls, pretrained: PretrainedSource, *, trust_remote_code: bool) -> ModelReader:
        tokenizer = load_tokenizer(pretrained, trust_remote_code=trust_remote_code)
        model = outline(pretrained, trust_remote_code=trust_remote_code)
        return cls(tokenizer, model, _shape_of(model))

    def require_usable(self, recipe: Recipe) -> None:
        """Raises UsageError and UnsupportedModelError for methods that this model does not allow."""
        total = self.shape["layers_total"]
        if beyond := sorted(index for index in recipe.frozen_layers if index >= total):
            raise UsageError(f"--freeze {beyond[0]}: the model has {total} layers, 0-{total - 1}; name some of these")
        if recipe.layer_drop:
            skippable_layers(self.model)

    def encode(self, task: SplitTask, recipe: Recipe) -> EncodedTask:
        limit = max_input_length(self.model.config, self.tokenizer)
        return encode(
            task,
            self.tokenizer,
            max_length=min(recipe.max_length, limit or recipe.max_length),
            takes_segments=takes_segments(self.model.config, self.model.forward),
        )


def create(found: ResolvedRequest, device: Device, observer: Observer) -> None:
    """Make the study's folder, whole: examples, tokenizer, environment, configuration.

    Raises UsageError and UnsupportedModelError for a task or model that cannot be used; nothing is written then.
    """
    config = found.config
    observer.stage(f"reading {config.task} and {config.model}")
    trust = found.request.trust_remote_code
    reader = ModelReader.of(found.pretrained, trust_remote_code=trust)
    total = reader.shape["layers_total"]
    for text in found.request.layers:
        LayerSet.parse(text, total)
    reader.require_usable(config.recipe)
    if found.warm_start:
        found.warm_start.require_depth(total)
    found.request.limits.structural.require_possible(total, reader.shape["undroppable"])
    task = carve(load_task(found.source, offline=found.request.offline), config.splits, config.split_seed)
    task = _with_fewer_to_train(task, config.recipe.train_examples, config.split_seed)
    with _new_study(found.folder, config, reader, task, device, wait=found.request.wait) as (draft, facts):
        save_texts(task, draft.texts)
        context = EvaluationContext(draft, found.pretrained.folder, found.pretrained.name, config.recipe, device, trust)
        with_measured_limits(found.request.limits, facts, context)


def create_reference(
    folder: StudyFolder, config: SearchConfig, reader: ModelReader, task: SplitTask, device: Device
) -> None:
    """Make the folder in which another model is measured on a study's own examples. Raises UsageError."""
    reader.require_usable(config.recipe)
    with _new_study(folder, config, reader, task, device, wait=True):
        pass


@contextlib.contextmanager
def _new_study(
    folder: StudyFolder, config: SearchConfig, reader: ModelReader, task: SplitTask, device: Device, *, wait: bool
) -> Iterator[tuple[StudyFolder, dict[str, Any]]]:
    """What every study holds, in a draft of its folder, and the facts of its configuration; what the caller adds."""
    encoded = reader.encode(task, config.recipe)
    facts = {**reader.shape, "device": device.describe(), "created": now()}
    with _whole_folder(folder, wait=wait) as draft:
        encoded.save(draft.examples)
        reader.tokenizer.save_pretrained(draft.tokenizer)
        write_json(draft.environment, {"versions": versions(), "python": platform.python_version(), **facts})
        yield draft, facts
        # Last, because a folder with a configuration is a study.
        write_json(draft.config, {"config": config.to_json(), "facts": facts})


def _with_fewer_to_train(task: SplitTask, count: int | None, seed: int) -> SplitTask:
    """The recipe's number of train examples, drawn once: the same for every layer set and seed."""
    train = task.splits["train"]
    if count is None or len(train) <= count:
        return task
    rows = np.random.default_rng([seed, count]).permutation(len(train))[:count]
    return dataclasses.replace(task, splits={**task.splits, "train": train.take(np.sort(rows))})


@contextlib.contextmanager
def _whole_folder(folder: StudyFolder, *, wait: bool) -> Iterator[StudyFolder]:
    """A folder to fill that gets its name when everything is in it; of two commands at once, one after the other."""
    draft = StudyFolder(folder.path.with_name(f".{folder.path.name}.new"))
    try:
        draft.path.mkdir(parents=True, exist_ok=True)
        with draft.locked(wait=wait):
            try:
                # A killed command may have left it.
                shutil.rmtree(draft.tokenizer, ignore_errors=True)
                yield draft
                if not folder.config.exists():
                    draft.path.rename(folder.path)
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)
    except OSError as error:
        raise BudgetSearchError(
            f"cannot write the study {folder.path.name} into {folder.path.parent}: {error.strerror or error}; "
            "choose another --studies-dir"
        ) from error


def _shape_of(model: Any) -> dict[str, Any]:
    layers = find_layers(model)
    return {
        "layers_total": len(layers),
        "layer_parameters": [sum(p.numel() for part in layer for p in part.parameters()) for layer in layers],
        "undroppable": sorted(undroppable(model)),
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
