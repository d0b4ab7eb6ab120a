"""Tokenise questions with their contexts; a context that is too long is split into overlapping windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from budget_search.core.errors import UsageError
from budget_search.data.kinds.kind import IGNORED, Encoded, Windows

QUESTION_SHARE = 1 / 2
"""The share of the tokens besides the special ones that a question may take; longer questions are truncated."""
OVERLAP = 1 / 4
"""The overlap of neighbouring windows, as a share of these tokens; less than ``1 - QUESTION_SHARE``."""
NO_ANSWER = (-1, -1)
"""The place of the token that stands for "no answer here"."""


@dataclass(frozen=True)
class Answer:
    """The accepted answers to a question, none if the context has none, and where in it the first one begins."""

    texts: tuple[str, ...]
    start: int = 0

    @property
    def end(self) -> int:
        """Exclusive, in characters."""
        return self.start + len(self.texts[0])


def tokenise(
    tokenizer: Any, columns: Sequence[Sequence[str]], labels: np.ndarray, options: Mapping[str, Any]
) -> Encoded:
    """Encode questions with their contexts, in windows.

    The labels are int64 (tokens, 2): 1 for the first token and 1 for the last token of the answer, 0 for other tokens
    of the context, IGNORED for those that cannot be an answer. A window without the whole answer is labelled "no answer
    here". Raises UsageError for a tokenizer without token offsets.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            "this model's tokenizer provides no token offsets, which --kind question-answering "
            "needs; choose a model with a tokenizer.json"
        )
    room = options["max_length"] - tokenizer.num_special_tokens_to_add(pair=True)
    batch = tokenizer(
        _shortened(tokenizer, columns[0], int(QUESTION_SHARE * room)),
        list(columns[1]),
        **{**options, "truncation": "only_second"},
        stride=int(OVERLAP * room),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    of_example = np.array(batch["overflow_to_sample_mapping"])
    windows = [_window(batch, number, tokenizer.cls_token_id) for number in range(len(of_example))]
    targets = [_targets(places, labels[example]) for places, example in zip(windows, of_example, strict=True)]
    return Encoded(
        batch,
        np.concatenate(targets),
        Windows(
            each=np.bincount(of_example, minlength=len(labels)),
            places=np.concatenate(windows).astype(np.int32),
            texts=[(context, *answer.texts) for context, answer in zip(columns[1], labels, strict=True)],
        ),
    )


def _shortened(tokenizer: Any, questions: Sequence[str], most: int) -> list[str]:
    """The questions, truncated to their first tokens."""
    short = tokenizer(
        list(questions), truncation=True, max_length=most, add_special_tokens=False, return_offsets_mapping=True
    )
    return [
        question[: places[-1][1]] if len(places) == most else question
        for question, places in zip(questions, short["offset_mapping"], strict=True)
    ]


def _window(batch: Any, number: int, special: int | None) -> np.ndarray:
    """The position of each token in the context, int64 (tokens, 2): characters, the end exclusive.

    ``NO_ANSWER`` for the special token, or the first one where there is none; IGNORED for all that is no context.
    """
    tokens = batch["input_ids"][number]
    in_context = np.array([text == 1 for text in batch.sequence_ids(number)])
    places = np.where(in_context[:, None], np.array(batch["offset_mapping"][number]), IGNORED)
    places[tokens.index(special) if special in tokens else 0] = NO_ANSWER
    return places


def _targets(places: np.ndarray, answer: Answer) -> np.ndarray:
    """The labels of a window's tokens, int64 (tokens, 2)."""
    targets = np.where(places == IGNORED, IGNORED, 0)
    context = np.flatnonzero(places[:, 0] >= 0)
    none = np.flatnonzero(places[:, 0] == NO_ANSWER[0])[0]
    first = last = none
    if answer.texts and len(context):
        begins, ends = places[context].T
        if begins[0] <= answer.start and answer.end <= ends[-1]:
            # The first token that reaches into the answer, and the last one that begins before its end.
            first, last = context[np.argmax(ends > answer.start)], context[np.flatnonzero(begins < answer.end)[-1]]
    targets[first, 0] = targets[last, 1] = 1
    return targets
