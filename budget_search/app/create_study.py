"""Create a study: read and tokenise the task, check the model, then write the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from budget_search.app.search_settings import evaluation_context, with_measured_limits
from budget_search.core.errors import UsageError
from budget_search.core.formatting import timestamp
from budget_search.core.layers import LayerSet
from budget_search.core.versions import versions
from budget_search.data.kinds import kind_of
from budget_search.data.loading import load_task
from budget_search.data.splits import SplitTask, carve
from budget_search.data.texts import save_texts
from budget_search.data.tokenization import encode, max_input_length, takes_segments
from budget_search.models.keep_layers import find_layers, undroppable
from budget_search.models.layer_training import skippable_layers
from budget_search.models.pretrained import PretrainedSource, load_tokenizer, outline
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder, draft_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budget_search.app.resolve import ResolvedRequest
    from budget_search.core.config import Recipe, SearchConfig
    from budget_search.data.kinds.kind import Kind
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device
    from budget_search.layer_search.settings import SearchObserver


@dataclass(frozen=True)
class ModelReader:
    """The parts of a model that a new study needs: tokenizer, architecture without weights, facts about the layers."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    facts: dict[str, Any]

    @classmethod
    def of(cls, pretrained: PretrainedSource, kind: Kind, *, trust_remote_code: bool) -> ModelReader:
        """Raises UsageError and UnsupportedModelError for a model that cannot be used."""
        tokenizer = load_tokenizer(pretrained, of_words=kind.of_words, trust_remote_code=trust_remote_code)
        model = outline(pretrained, kind, trust_remote_code=trust_remote_code)
        return cls(tokenizer, model, _layer_facts(model))

    def require_usable(self, recipe: Recipe) -> None:
        """Raises UsageError and UnsupportedModelError if the recipe names layers or methods that this model lacks."""
        total = self.facts["layers_total"]
        if too_large := sorted(index for index in recipe.frozen_layers if index >= total):
            raise UsageError(
                f"--freeze {too_large[0]}: the model has {total} layers, 0-{total - 1}; name some of these"
            )
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


def create(resolved: ResolvedRequest, device: Device, observer: SearchObserver) -> None:
    """Create the study's folder with its examples, tokenizer, environment and configuration.

    Raises UsageError and UnsupportedModelError for a task or model that cannot be used; then nothing is written.
    """
    config = resolved.config
    observer.stage(f"reading {config.task} and {config.model}")
    kind, trust = kind_of(config.metric), resolved.request.trust_remote_code
    reader = ModelReader.of(resolved.pretrained, kind, trust_remote_code=trust)
    total = reader.facts["layers_total"]
    for text in resolved.request.layers:
        LayerSet.parse(text, total)
    reader.require_usable(config.recipe)
    if resolved.warm_start:
        resolved.warm_start.require_depth(total)
    resolved.request.limits.structural.require_possible(total, reader.facts["undroppable"])
    raw = load_task(resolved.source, offline=resolved.request.offline)
    task = carve(raw, config.splits, config.split_seed, config.recipe)
    task = _subsample_train(task, config.recipe.train_examples, config.split_seed)
    with _new_study(resolved.folder, config, reader, task, device, wait=resolved.request.wait) as (draft, facts):
        save_texts(task, draft.texts)
        with_measured_limits(resolved.request.limits, facts, evaluation_context(resolved, draft, device))


def create_reference(
    folder: StudyFolder, config: SearchConfig, reader: ModelReader, task: SplitTask, device: Device
) -> None:
    """Create the folder in which a reference model is measured on a study's own examples. Raises UsageError."""
    reader.require_usable(config.recipe)
    with _new_study(folder, config, reader, task, device, wait=True):
        pass


@contextlib.contextmanager
def _new_study(
    folder: StudyFolder, config: SearchConfig, reader: ModelReader, task: SplitTask, device: Device, *, wait: bool
) -> Iterator[tuple[StudyFolder, dict[str, Any]]]:
    """A draft of the folder with the files that every study has, and the facts of its configuration.

    The caller may add files before the draft gets its name.
    """
    encoded = reader.encode(task, config.recipe)
    facts = {
        **reader.facts,
        "device": device.describe(),
        "created": timestamp(),
    }
    with draft_of(folder, wait=wait) as draft:
        encoded.save(draft.examples)
        reader.tokenizer.save_pretrained(draft.tokenizer)
        write_json(draft.environment, {"versions": versions(), "python": platform.python_version(), **facts})
        yield draft, facts
        # Written last: a folder with a configuration counts as a study.
        write_json(draft.config, {"config": config.to_json(), "facts": facts})


def _subsample_train(task: SplitTask, count: int | None, seed: int) -> SplitTask:
    """The recipe's number of training examples, drawn once: the same for every layer set and seed."""
    train = task.splits["train"]
    if count is None or len(train) <= count:
        return task
    rows = np.random.default_rng([seed, count]).permutation(len(train))[:count]
    return dataclasses.replace(task, splits={**task.splits, "train": train.take(np.sort(rows))})


def _layer_facts(model: Any) -> dict[str, Any]:
    layers = find_layers(model)
    return {
        "layers_total": len(layers),
        "layer_parameters": [sum(p.numel() for part in layer for p in part.parameters()) for layer in layers],
        "undroppable": sorted(undroppable(model)),
    }
