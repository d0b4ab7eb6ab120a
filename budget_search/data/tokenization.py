"""The tokenised task: encoded once, stored in one file, read by every worker without transformers."""

from __future__ import annotations

import dataclasses
import inspect
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budget_search.core.errors import StudyError, UsageError
from budget_search.data.kinds import kind_of
from budget_search.data.kinds.kind import IGNORED, Encoded, Kind, Truth, Windows
from budget_search.data.metrics import example_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from budget_search.data.loading import Examples
    from budget_search.data.splits import SplitTask
from budget_search.storage.files import atomic_path

_BATCH = 10_000
# RoBERTa-like models number positions from pad_token_id + 1, so the positions up to pad_token_id are unused.
_POSITIONS_AFTER_PADDING = ("roberta", "camembert", "longformer", "mpnet", "xmod", "data2vec-text", "ibert")


@dataclass(frozen=True)
class EncodedSplit:
    """Concatenated inputs of a model, without padding. An example is one input, or several consecutive ones.

    ``tokens`` int32 and ``segments`` uint8 (or None) are (total_tokens,), ``offsets`` int64 (inputs + 1,): input ``i``
    is ``tokens[offsets[i]:offsets[i + 1]]``. ``labels`` are int64 class numbers or float32 scores (examples,), float32
    zeros and ones (examples, labels), or of tokens, IGNORED where one has none: int64 class numbers (total_tokens,), or
    zeros and ones (total_tokens, 2). Where examples have several inputs, ``each``, ``places`` and ``texts`` (uint8, a
    line of JSON per example) are those of ``Windows``.
    """

    tokens: np.ndarray
    segments: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray
    each: np.ndarray | None = None
    places: np.ndarray | None = None
    texts: np.ndarray | None = None

    @property
    def inputs(self) -> int:
        return len(self.offsets) - 1

    @property
    def examples(self) -> int:
        return self.inputs if self.each is None else len(self.each)

    @cached_property
    def example_offsets(self) -> np.ndarray:
        """``offsets`` of the examples, int64 (examples + 1,)."""
        return self.offsets if self.each is None else self.offsets[np.concatenate([[0], np.cumsum(self.each)])]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, int64 (examples,)."""
        return np.diff(self.example_offsets)

    @cached_property
    def labelled(self) -> np.ndarray:
        """Which tokens have a label, where labels belong to tokens: bool (total_tokens,)."""
        return np.asarray(self.labels.reshape(len(self.labels), -1)[:, 0] != IGNORED)

    @cached_property
    def windows(self) -> Windows | None:
        """The windows, with the places of the labelled tokens only."""
        if self.each is None or self.places is None or self.texts is None:
            return None
        texts = [json.loads(line) for line in self.texts.tobytes().splitlines()]
        return Windows(self.each, self.places[self.labelled], texts)


@dataclass(frozen=True)
class EncodedTask:
    """All splits, and the padding settings that batches need. ``label_names`` is empty for scores."""

    splits: Mapping[str, EncodedSplit]
    label_names: tuple[str, ...]
    metric: str
    also: tuple[str, ...]
    pad_token: int
    pad_segment: int
    pad_left: bool
    notes: tuple[str, ...] = ()

    @property
    def held_out_splits(self) -> tuple[str, ...]:
        """``held_out`` and further held-out splits, such as MNLI's ``held_out_mismatched``."""
        return tuple(name for name in self.splits if name.startswith("held_out"))

    @property
    def kind(self) -> Kind:
        """The kind of task, which the metric names."""
        return kind_of(self.metric)

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics, the primary one first."""
        return self.metric, *self.also

    def truth(self, split: str) -> Truth:
        """What outputs for a split are scored against."""
        each = self.splits[split]
        if not self.kind.per_token:
            return Truth(each.labels, np.ones(each.examples, dtype=np.int64), self.label_names)
        before = np.concatenate([[0], np.cumsum(each.labelled)])
        return Truth(each.labels[each.labelled], np.diff(before[each.offsets]), self.label_names, each.windows)

    def measure(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """Every metric of outputs for a split, in points. Raises as ``metrics.measure`` does."""
        return self.kind.measure(self.metrics, outputs, self.truth(split))

    def contributions(self, split: str, outputs: np.ndarray) -> np.ndarray:
        """Values per example whose mean is the score of outputs for a split, in points."""
        return self.kind.contributions(self.metric, outputs, self.truth(split))

    def example_weight(self, split: str) -> float:
        """The points that one example of the rarest class contributes to a score (see ``metrics.example_weight``)."""
        return example_weight(self.metric, self.splits[split].labels)

    def label_shares(self, split: str) -> dict[str, float]:
        """How frequent each label is in a split, by name; empty for scores."""
        return self.kind.label_shares(self.truth(split))

    def constant_outputs(self, split: str) -> np.ndarray:
        """The outputs of the best constant prediction on a split."""
        return self.kind.constant_outputs(self.metric, self.truth(split))

    def constant_score(self, split: str) -> float:
        """The score in points of the best constant prediction on a split."""
        return self.measure(split, self.constant_outputs(split))[self.metric]

    def save(self, path: Path) -> None:
        """Write one ``.npz`` file atomically. Splits that are the same object are written once."""
        stored: dict[int, str] = {}
        arrays: dict[str, np.ndarray] = {}
        for name, split in self.splits.items():
            if stored.setdefault(id(split), name) == name:
                arrays |= {f"{name}/{field}": getattr(split, field) for field in _ARRAYS}
        header = {field: getattr(self, field) for field in _HEADER}
        header["splits"] = {name: stored[id(split)] for name, split in self.splits.items()}
        present = {name: array for name, array in arrays.items() if array is not None}
        _save_npz(path, {"header": np.array(json.dumps(header)), **present})

    @classmethod
    def load(cls, path: Path) -> EncodedTask:
        """Read the file that ``save`` wrote. Raises StudyError if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                arrays = {name: file[name] for name in file.files if name != "header"}
            stored = {
                name: EncodedSplit(**{field: arrays.get(f"{name}/{field}") for field in _ARRAYS})  # type: ignore[arg-type]
                for name in set(header["splits"].values())
            }
            splits = {name: stored[same] for name, same in header.pop("splits").items()}
            for name in ("label_names", "also", "notes"):
                header[name] = tuple(header[name])
            return cls(splits=splits, **header)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise StudyError(
                f"the tokenised examples {path} are missing or damaged ({type(error).__name__}); "
                "to start over, move the study's folder away"
            ) from error


_ARRAYS = tuple(field.name for field in dataclasses.fields(EncodedSplit))
_HEADER = ("label_names", "metric", "also", "pad_token", "pad_segment", "pad_left", "notes")


def encode(
    task: SplitTask, tokenizer: PreTrainedTokenizerBase, *, max_length: int, takes_segments: bool
) -> EncodedTask:
    """Tokenise every split once; inputs are truncated to ``max_length`` tokens, the longer text of a pair first.

    Raises UsageError if ``max_length`` leaves no room for a text, or if the tokenizer has no token for padding.
    """
    pair = len(task.splits["train"].texts) == 2
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pair)
    if room < 1 + pair:
        raise UsageError(f"--max-length {max_length} leaves no room for a text besides the special tokens")
    pad_token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_token is None:
        raise UsageError("the tokenizer has neither a padding token nor an end token; choose another --model")
    kind = kind_of(task.metric)
    done: dict[int, EncodedSplit] = {}
    splits = {}
    for name, examples in task.splits.items():
        if id(examples) not in done:  # official splits are one object with three names
            done[id(examples)] = _encode_split(examples, kind, tokenizer, max_length, takes_segments)
        splits[name] = done[id(examples)]
    return EncodedTask(
        splits=splits,
        label_names=task.label_names,
        metric=task.metric,
        also=task.also,
        pad_token=pad_token,
        pad_segment=_pad_segment(tokenizer),
        pad_left=tokenizer.padding_side == "left",
        notes=(*task.notes, *_truncation_note(splits["held_out"], max_length)),
    )


def decoder(tokenizer_dir: Path) -> Callable[[np.ndarray], tuple[str, ...]]:
    """A function from token numbers to readable texts, split at special tokens, which are removed.

    The function returns no texts if the folder has no ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    file = tokenizer_dir / "tokenizer.json"
    if not file.is_file():
        return lambda tokens: ()
    tokenizer = Tokenizer.from_file(str(file))
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = tokenizer.token_to_id("[UNK]")

    def texts(tokens: np.ndarray) -> tuple[str, ...]:
        runs: list[list[int]] = [[]]
        for token in map(int, tokens):
            if token in special and token != unknown:
                runs.append([])
            else:
                runs[-1].append(token)
        return tuple(tokenizer.decode(run, skip_special_tokens=False).strip() for run in runs if run)

    return texts


def takes_segments(config: PretrainedConfig, forward: Callable[..., Any]) -> bool:
    """Whether a model uses ``token_type_ids`` to distinguish the two texts of a pair.

    Some tokenizers of Transformers 5 return them only on request; without them, the model sees a single segment. Some
    models accept them but ignore them: their ``type_vocab_size`` is below two.
    """
    accepted = "token_type_ids" in inspect.signature(forward).parameters
    return accepted and (getattr(config, "type_vocab_size", 0) > 1 or config.model_type == "xlnet")


def max_input_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The largest input of a model in tokens, or None if it is unlimited, as with relative positions."""
    limits = []
    if tokenizer.model_max_length < 1_000_000:  # transformers uses a very large number for "no limit"
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        after_padding = any(kind in config.model_type for kind in _POSITIONS_AFTER_PADDING)
        unused = (config.pad_token_id or 0) + 1 if after_padding else 0
        limits.append(positions - unused)
    return min(limits, default=None)


def _pad_segment(tokenizer: PreTrainedTokenizerBase) -> int:
    # Transformers 5 sets XLNet's own value, then overwrites it with the general default.
    return 3 if type(tokenizer).__name__.startswith("XLNet") else int(tokenizer.pad_token_type_id)


def _encode_split(
    examples: Examples, kind: Kind, tokenizer: PreTrainedTokenizerBase, max_length: int, with_segments: bool
) -> EncodedSplit:
    options = {
        "truncation": "longest_first",
        "max_length": max_length,
        "padding": False,
        "return_attention_mask": False,
        "return_token_type_ids": with_segments,
    }
    parts = []
    for start in range(0, len(examples), _BATCH):
        some = slice(start, start + _BATCH)
        columns = [list(column[some]) for column in examples.texts]
        encoded = kind.tokenise(tokenizer, columns, examples.labels[some], options)
        parts.append(_flat(encoded, with_segments))
    arrays = {name: [getattr(part, name) for part in parts] for name in _ARRAYS}
    joined: dict[str, Any] = {name: None if each[0] is None else np.concatenate(each) for name, each in arrays.items()}
    lengths = np.concatenate([np.diff(offsets) for offsets in arrays["offsets"]])
    return EncodedSplit(**{**joined, "offsets": np.concatenate([[0], np.cumsum(lengths)])})


def _flat(encoded: Encoded, with_segments: bool) -> EncodedSplit:
    """Some examples without the tokenizer's lists, which are many times as large."""
    batch, windows = encoded.batch, encoded.windows
    lengths = [len(row) for row in batch["input_ids"]]
    lines = [json.dumps(each) + "\n" for each in (windows.texts if windows else ())]
    return EncodedSplit(
        tokens=_concatenate(batch["input_ids"], np.int32),
        segments=_concatenate(batch["token_type_ids"], np.uint8) if with_segments else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=encoded.labels,
        each=windows.each if windows else None,
        places=windows.places if windows else None,
        texts=np.frombuffer("".join(lines).encode(), dtype=np.uint8) if windows else None,
    )


def _concatenate(rows: Sequence[Sequence[int]], dtype: type[np.generic]) -> np.ndarray:
    return np.fromiter((number for row in rows for number in row), dtype=dtype)


def _truncation_note(split: EncodedSplit, max_length: int) -> tuple[str, ...]:
    full = float(np.mean(split.lengths >= max_length))
    if full < 0.01 or split.each is not None:
        return ()
    return (
        f"{full:.0%} of the held_out examples fill the {max_length} tokens of --max-length; they may be truncated.",
    )


def _save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
