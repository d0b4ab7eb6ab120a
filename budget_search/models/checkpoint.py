"""Export an answer as a Hugging Face checkpoint and verify it by loading it again."""

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
from transformers import AutoTokenizer, PreTrainedModel, pipeline

from budget_search.core.errors import StudyError
from budget_search.core.serialization import to_plain
from budget_search.data.kinds.kind import Kind
from budget_search.models.export_folder import MARKER, refuse_foreign
from budget_search.models.pretrained import auto_class
from budget_search.storage.files import share_with_readers_of

CARD = "README.md"
# The re-loaded model has the same weights, but the order of floating-point sums may depend on memory alignment.
LOGIT_TOLERANCE = 1e-5
# The study may have predicted in bf16. Relative to the standard deviation of the outputs; other weights differ more.
RECORDED_TOLERANCE = 0.05


@dataclass(frozen=True)
class HeldOut:
    """The ``examples`` held-out examples of a task of this ``kind``, through functions of the caller.

    ``logits`` returns a model's fp32 outputs of shape (rows, classes), ``score`` the score of such outputs in points.
    ``recorded`` are the outputs of the same weights that the study recorded, in any precision; None if it did not.
    """

    kind: Kind
    examples: int
    logits: Callable[[PreTrainedModel], np.ndarray]
    score: Callable[[np.ndarray], float]
    recorded: np.ndarray | None = None


@dataclass(frozen=True)
class Export:
    """A finished export: ``held_out_score`` (points) is the score of the re-loaded folder on ``examples`` examples.

    ``largest_difference`` is the largest absolute difference between its logits and the original model's.
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
    """Write the checkpoint in ``weights_dir`` with tokenizer, model card and provenance to ``output``, and verify it.

    ``provenance`` is the content of ``budget_search.json``. ``card`` renders the model card from the held-out score of
    this checkpoint. ``output`` appears complete or not at all. Raises UsageError if ``output`` contains anything else,
    and StudyError if the weights cannot be read or are not the ones that the study measured.
    """
    refuse_foreign(output)
    output = output.resolve()
    model = _load(weights_dir, held_out.kind, trust_remote_code)
    with _atomic_folder(output) as folder:
        model.save_pretrained(folder)
        _copy_tokenizer(tokenizer_dir, folder)
        _try_pipeline(folder, tokenizer_dir, held_out.kind, trust_remote_code)
        score, difference = _check(model, folder, held_out, trust_remote_code)
        (folder / CARD).write_text(card(score), encoding="utf-8")
        files = sorted([MARKER, *(path.name for path in folder.iterdir())])
        evidence = {**provenance, "held_out_score_of_this_checkpoint": score, "files": files}
        text = json.dumps(to_plain(evidence), indent=2, allow_nan=False)
        (folder / MARKER).write_text(f"{text}\n", encoding="utf-8")
    return Export(output, score, held_out.examples, difference)


@contextmanager
def _atomic_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output``: renamed to it if the block succeeds, deleted if it fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    folder = output.with_name(f".{output.name}.{unique}.new")
    replaced = output.with_name(f".{output.name}.{unique}.old")
    folder.mkdir()
    try:
        yield folder
        share_with_readers_of(folder)
        if output.exists():
            output.rename(replaced)
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)


def _load(folder: Path, kind: Kind, trust_remote_code: bool) -> PreTrainedModel:
    """The checkpoint in fp32, loaded by stock transformers. Raises StudyError for missing or unexpected weights."""
    try:
        model, loading = auto_class(kind).from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StudyError(f"cannot load the checkpoint in {folder}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := loading[problem]:
            raise StudyError(f"the checkpoint in {folder} has {problem.replace('_', ' ')}: {sorted(map(str, keys))}")
    result: PreTrainedModel = model
    return result


def _copy_tokenizer(tokenizer_dir: Path, folder: Path) -> None:
    """Copy all files except those of the model itself. Raises StudyError if there are none."""
    model_files = {"config.json", CARD, MARKER}
    candidates = [path for path in sorted(tokenizer_dir.glob("*.*")) if path.name not in model_files]
    files = [path for path in candidates if path.is_file() and path.suffix not in (".safetensors", ".bin")]
    if not files:
        # Without files, transformers would return an empty tokenizer instead of raising.
        raise StudyError(f"there is no tokenizer in {tokenizer_dir}")
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _check(model: PreTrainedModel, folder: Path, held_out: HeldOut, trust_remote_code: bool) -> tuple[float, float]:
    """Load the folder again and compare it with the model and with the recorded outputs.

    Returns the score of the folder, and the largest difference between logits.
    """
    expected = held_out.logits(model)
    reloaded = _load(folder, held_out.kind, trust_remote_code)
    _same_weights(model, reloaded)
    outputs = held_out.logits(reloaded)
    difference = float(np.abs(outputs - expected).max())
    if not difference <= LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise StudyError(
            f"the exported checkpoint predicts differently from the model: logits differ by {difference:.3g}"
        )
    if held_out.recorded is not None:
        deviation = float(np.abs(outputs - held_out.recorded).mean())
        if not deviation <= RECORDED_TOLERANCE * float(held_out.recorded.std()) + LOGIT_TOLERANCE:
            raise StudyError(
                f"the weights are not the ones that the study measured: outputs differ by {deviation:.3g} on average"
            )
    return held_out.score(outputs), difference


def _same_weights(model: PreTrainedModel, reloaded: PreTrainedModel) -> None:
    ours, theirs = model.state_dict(), reloaded.state_dict()
    changed = [name for name in ours if name not in theirs or not torch.equal(ours[name].cpu(), theirs[name].cpu())]
    if changed or len(ours) != len(theirs):
        raise StudyError(f"the exported checkpoint does not contain the model's weights: {', '.join(changed[:5])}")


def _try_pipeline(folder: Path, tokenizer_dir: Path, kind: Kind, trust_remote_code: bool) -> None:
    """Run the pipeline of this kind of task, if there is one, and check that it loads the study's tokenizer."""
    text = "A first sentence, and another."
    try:
        if not kind.usage:
            run = pipeline(kind.pipeline, model=str(folder), device="cpu", trust_remote_code=trust_remote_code)  # type: ignore[call-overload]
            run(text)
        tokens, expected = (
            AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)(text)[
                "input_ids"
            ]
            for path in (folder, tokenizer_dir)
        )
    except Exception as error:  # any failure means that the folder cannot be used
        raise StudyError(f"the exported checkpoint does not work with its tokenizer: {error}") from error
    if tokens != expected:
        raise StudyError("the exported checkpoint does not load the tokenizer that the study used")
