"""The answer as a folder that stock transformers loads, checked by loading it before success is claimed."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

from budget_search.core.errors import StudyError
from budget_search.core.serialization import to_plain
from budget_search.models.export_folder import MARKER, refuse_foreign

CARD = "README.md"
# The same weights on the same machine; only where the allocator put them may differ, and with it the order of sums.
LOGIT_TOLERANCE = 1e-5
# The study may have predicted in bf16: far below what other weights differ by, relative to the spread of the outputs.
RECORDED_TOLERANCE = 0.05


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples, as the caller batches and scores them.

    ``logits`` gives a model's fp32 outputs (examples, classes) on all of them, ``score`` turns outputs into points.
    ``recorded`` are the outputs that the study recorded of the weights to export, if it did, in any precision.
    """

    logits: Callable[[PreTrainedModel], np.ndarray]
    score: Callable[[np.ndarray], float]
    recorded: np.ndarray | None = None


@dataclass(frozen=True)
class Export:
    """A finished export: ``held_out_score`` (points) was computed from the folder, over ``examples`` examples.

    ``largest_difference`` is that of its logits from those of the model it was made of.
    """

    folder: Path
    held_out_score: float
    examples: int
    largest_difference: float


def export_checkpoint(
    weights_dir: Path,
    output: Path,
    *,
    tokenizer_dir: Path,
    held_out: HeldOut,
    provenance: Mapping[str, Any],
    card: Callable[[float], str],
    trust_remote_code: bool = False,
) -> Export:
    """Write the checkpoint in ``weights_dir`` with its tokenizer, evidence and card to ``output``, and check it.

    ``provenance`` is what ``budget_search.json`` says; ``card`` makes the model card from this very checkpoint's
    held-out score. Code that the model brings runs only if it is trusted. ``output`` appears complete or not at all.
    Raises UsageError when something else is there, and StudyError when the weights cannot be read or the folder does
    not hold what the study measured.
    """
    refuse_foreign(output)
    output = output.resolve()
    model = _load(weights_dir, trust_remote_code)
    with _appearing(output) as folder:
        model.save_pretrained(folder)
        _copy_tokenizer(tokenizer_dir, folder)
        _try_pipeline(folder, tokenizer_dir, trust_remote_code)
        examples, score, difference = _check(model, folder, held_out, trust_remote_code)
        (folder / CARD).write_text(card(score), encoding="utf-8")
        files = sorted([MARKER, *(path.name for path in folder.iterdir())])
        evidence = {**provenance, "held_out_score_of_this_checkpoint": score, "files": files}
        text = json.dumps(to_plain(evidence), indent=2, allow_nan=False)
        (folder / MARKER).write_text(f"{text}\n", encoding="utf-8")
    return Export(output, score, examples, difference)


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name when the block succeeds, and is gone when it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    folder = output.with_name(f".{output.name}.{unique}.new")
    replaced = output.with_name(f".{output.name}.{unique}.old")
    folder.mkdir()
    try:
        yield folder
        if output.exists():
            output.rename(replaced)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)


def _load(folder: Path, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint in fp32, as stock transformers reads it. Raises StudyError unless it holds just what it should."""
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StudyError(f"cannot load the checkpoint in {folder}: {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[what]:
            raise StudyError(
                f"the checkpoint in {folder} has {what.replace('_', ' ')}: {sorted(map(str, found[what]))}"
            )
    result: PreTrainedModel = model
    return result


def _copy_tokenizer(tokenizer_dir: Path, folder: Path) -> None:
    """All its files, except those that are the model's own. Raises StudyError when there are none."""
    models_own = {"config.json", CARD, MARKER}
    found = [path for path in sorted(tokenizer_dir.glob("*.*")) if path.name not in models_own]
    files = [path for path in found if path.is_file() and path.suffix not in (".safetensors", ".bin")]
    if not files:
        # Stock transformers would make up an empty tokenizer, without a word.
        raise StudyError(f"there is no tokenizer in {tokenizer_dir}")
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _check(
    model: PreTrainedModel, folder: Path, held_out: HeldOut, trust_remote_code: bool
) -> tuple[int, float, float]:
    """Load the folder anew and compare. Gives the examples seen, the folder's own score, the largest difference."""
    expected = held_out.logits(model)
    reloaded = _load(folder, trust_remote_code)
    _same_weights(model, reloaded)
    outputs = held_out.logits(reloaded)
    difference = float(np.abs(outputs - expected).max())
    if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise StudyError(
            f"the exported checkpoint predicts otherwise than the model: logits differ by {difference:.3g}"
        )
    if held_out.recorded is not None:
        apart = float(np.abs(outputs - held_out.recorded).mean())
        if not apart <= RECORDED_TOLERANCE * float(held_out.recorded.std()) + LOGIT_TOLERANCE:
            raise StudyError(
                f"the weights are not those that the study measured: their outputs differ by {apart:.3g} on average"
            )
    return len(outputs), held_out.score(outputs), difference


def _same_weights(model: PreTrainedModel, reloaded: PreTrainedModel) -> None:
    ours, theirs = model.state_dict(), reloaded.state_dict()
    changed = [name for name in ours if name not in theirs or not torch.equal(ours[name].cpu(), theirs[name].cpu())]
    if changed or len(ours) != len(theirs):
        raise StudyError(f"the exported checkpoint does not hold the model's weights: {', '.join(changed[:5])}")


def _try_pipeline(folder: Path, tokenizer_dir: Path, trust_remote_code: bool) -> None:
    """What a stranger will do first; which tokenizer that loads depends on the model's config beside it."""
    text = "A first sentence, and another."
    try:
        pipeline("text-classification", model=str(folder), device="cpu", trust_remote_code=trust_remote_code)(text)
        tokens, expected = (
            AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=trust_remote_code)(text)[
                "input_ids"
            ]
            for place in (folder, tokenizer_dir)
        )
    except Exception as error:  # whatever goes wrong in there, the folder does not work
        raise StudyError(f"the exported checkpoint does not work with its tokenizer: {error}") from error
    if tokens != expected:
        raise StudyError("the exported checkpoint does not load the tokenizer that the study used")
