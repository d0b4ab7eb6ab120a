"""Token classification: a tag per word, such as the spans of named entities or parts of speech.

The first token of each word gets the word's tag, its other tokens none. Words that ``--max-length`` cuts off are
neither trained nor scored, as in the examples of transformers.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from budget_search.core.errors import UsageError
from budget_search.data import metrics
from budget_search.data.kinds import classification
from budget_search.data.kinds.kind import (
    IGNORED,
    LONGEST_NAME,
    Answers,
    Encoded,
    LabelCells,
    LabelsBySplit,
    Names,
    Truth,
)
from budget_search.data.labels import format_names, label_text, numbers_of, refuse_missing, sorted_names

_SPAN_TAG = re.compile("O|[BIESLU](-.+)?")


def read_text(cell: Any) -> Any:
    """The words of a sentence as one text, separated by single spaces; a text is split at white space.

    Anything else is returned as it is, to be refused.
    """
    if isinstance(cell, str):
        return " ".join(cell.split())
    if isinstance(cell, list | tuple) and all(isinstance(word, str) for word in cell):
        # A space inside a word must not separate words.
        return " ".join(re.sub(r"\s", "\N{NO-BREAK SPACE}", word) for word in cell)
    return cell


def words_of(text: str) -> list[str]:
    """The words of a text that ``read_text`` made."""
    return text.split(" ")


def read_labels(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    """For every example an int64 array with the number of each word's tag; in an array of objects (examples,).

    Tags are names, or numbers of the names in the metadata. Raises UsageError if a sentence has more or fewer tags
    than words, if there are fewer than two tags, or if the metric needs spans and the tags are none.
    """
    column, cells = raw.column, raw.single
    refuse_missing(cells, column)
    tags = {split: [_tags(cell) for cell in values] for split, values in cells.items()}
    for split, rows in tags.items():
        for number, (row, text) in enumerate(zip(rows, raw.texts[split][0], strict=True), start=1):
            if row is None or len(row) != len(words_of(text)):
                said = f"{len(row)} tags" if row is not None else f"{cells[split][number - 1]!r}"
                raise UsageError(
                    f"--label-column {column}: example {number} in {split} has {len(words_of(text))} words and {said}; "
                    "a list with one tag per word is needed"
                )
    # A rare tag may occur in one split alone.
    names = raw.names or sorted_names({tag for rows in tags.values() for row in rows for tag in row or ()})
    numbers = numbers_of(names)
    _check_names(names, raw)
    coded = {}
    for split, rows in tags.items():
        coded[split] = np.empty(len(rows), dtype=object)
        for number, row in enumerate(rows):
            unknown = next((tag for tag in row or () if tag not in numbers), None)
            if unknown is not None:
                raise UsageError(
                    f"--label-column {column}: the tag {unknown!r} in {split} is not among the names in the file: "
                    f"{format_names(names)}"
                )
            coded[split][number] = np.array([numbers[tag] for tag in row or ()], dtype=np.int64)
    return coded, names


def _tags(cell: Any) -> list[str] | None:
    if isinstance(cell, str):
        return cell.split()
    return [label_text(tag) for tag in cell] if isinstance(cell, list | tuple) else None


def _check_names(names: Names, raw: LabelCells) -> None:
    if len(names) < 2:
        raise UsageError(f"--label-column {raw.column} holds the tags {format_names(names)}; two are needed")
    other = next((name for name in names if not _SPAN_TAG.fullmatch(name)), None)
    if "entity_f1" in raw.metrics and other is not None:
        raise UsageError(
            f"--label-column {raw.column}: --metric entity_f1 needs tags of spans (O, B-PER, I-PER), but {other!r} is "
            "none; for tags of single words, or numbers without names, give --metric token_accuracy"
        )


def tokenise(
    tokenizer: Any, columns: Sequence[Sequence[str]], labels: np.ndarray, options: Mapping[str, Any]
) -> Encoded:
    """Encode sentences word by word; the labels are those of all tokens, int64 (tokens,), IGNORED where there is none.

    Raises UsageError for a tokenizer that does not map tokens to words.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            "this model's tokenizer does not map tokens to words, which --kind token-classification "
            "needs; choose a model with a tokenizer.json"
        )
    batch = tokenizer([words_of(text) for text in columns[0]], is_split_into_words=True, **options)
    aligned = [_aligned(batch.word_ids(number), tags) for number, tags in enumerate(labels)]
    return Encoded(batch, np.concatenate(aligned))


def _aligned(words: Sequence[int | None], tags: np.ndarray) -> np.ndarray:
    """The label of each token, from the word it belongs to: the tag of the word at its first token."""
    of_word = np.array([IGNORED if word is None else word for word in words])
    first = (of_word != IGNORED) & (of_word != np.concatenate([[IGNORED], of_word[:-1]]))
    return np.where(first, tags[np.where(first, of_word, 0)], IGNORED).astype(np.int64)


def strata(train: np.ndarray, classes: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """The tag of a sentence that is rarest in train; so rare tags are in every split."""
    counts = np.bincount(np.concatenate(train), minlength=classes)
    rank = np.argsort(np.argsort(counts, kind="stable"), kind="stable")

    def of(labels: np.ndarray) -> np.ndarray:
        return np.array([tags[np.argmin(rank[tags])] for tags in labels], dtype=np.int64)

    return of, classes


# -- scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """The spans in a sequence of tags, in order: each int64 (spans,); ``last`` is inclusive."""

    first: np.ndarray
    last: np.ndarray
    kind: np.ndarray


def find_spans(tags: np.ndarray, sizes: np.ndarray, names: Names) -> Spans:
    """The spans of sentences of these ``sizes``, whose ``tags`` (words,) stand one after the other.

    By the rules of conlleval, which seqeval uses by default: B, I, E, S (also L and U); I or E without a beginning
    begins a span, and so does another type. ``kind`` numbers the types of ``names``.
    """
    prefix, kinds = _parts(names)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    edges = edges[edges < len(tags)]
    mark, kind = prefix[tags], kinds[tags]
    before, after = np.roll(mark, 1), np.roll(mark, -1)
    before[edges], after[edges - 1] = "O", "O"
    inside = mark != "O"
    starts = inside & (np.isin(mark, ["B", "S"]) | np.isin(before, ["O", "E", "S"]) | (kind != np.roll(kind, 1)))
    ends = inside & (np.isin(mark, ["E", "S"]) | np.isin(after, ["O", "B", "S"]) | (kind != np.roll(kind, -1)))
    first = np.flatnonzero(starts)
    return Spans(first, np.flatnonzero(ends), kind[first])


def _parts(names: Names) -> tuple[np.ndarray, np.ndarray]:
    """The prefix of every tag, in the letters O B I E S, and the number of its type."""
    types = {name[2:] for name in names}
    numbers = {name: number for number, name in enumerate(sorted(types))}
    prefix = np.array([{"L": "E", "U": "S"}.get(name[0], name[0]) for name in names])
    return prefix, np.array([numbers[name[2:]] for name in names])


def measure(names: Sequence[str], outputs: np.ndarray, truth: Truth) -> dict[str, float]:
    """F1 over all spans, which are right if their edges and their type are; or the share of the words tagged right.

    Raises ValueError if an output is not finite.
    """
    metrics.require_finite(outputs)
    return {name: float(100 * metrics.ratio(*_terms(name, outputs, truth))) for name in names}


def contributions(metric: str, outputs: np.ndarray, truth: Truth) -> np.ndarray:
    """Per sentence: both metrics are ratios of means over sentences."""
    return 100 * metrics.ratio_contributions(*_terms(metric, outputs, truth))


def _terms(metric: str, outputs: np.ndarray, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator of the metric by sentence, float64 (examples,)."""
    predicted, sentence = outputs.argmax(axis=1), np.repeat(np.arange(len(truth.sizes)), truth.sizes)

    def count(places: np.ndarray) -> np.ndarray:
        return np.bincount(sentence[places], minlength=len(truth.sizes)).astype(np.float64)

    if metric == "token_accuracy":
        return count(predicted == truth.labels), truth.sizes.astype(np.float64)
    said, true = (find_spans(tags, truth.sizes, truth.names) for tags in (predicted, truth.labels))
    _, place, other = np.intersect1d(said.first, true.first, return_indices=True)
    right = (said.last[place] == true.last[other]) & (said.kind[place] == true.kind[other])
    return 2 * count(said.first[place[right]]), count(said.first) + count(true.first)


def constant_outputs(metric: str, truth: Truth) -> np.ndarray:
    """The tag that scores most when every word has it, of equals the most frequent: O for most tasks with spans."""
    frequent_first = np.argsort(-np.bincount(truth.labels, minlength=len(truth.names)), kind="stable")
    rows = np.eye(len(truth.names), dtype=np.float32)
    answers = [np.broadcast_to(rows[tag], (len(truth.labels), len(rows))) for tag in frequent_first]
    return max(answers, key=lambda outputs: measure((metric,), outputs, truth)[metric])


def answers(outputs: Sequence[np.ndarray], truth: Truth) -> Answers:
    """Every sequence of tags that occurs is an answer of its own, named by its spans or its tags."""
    edges = np.cumsum(truth.sizes)[:-1]
    sequences: dict[tuple[int, ...], int] = {}
    numbered = [
        np.array([sequences.setdefault(tuple(tags.tolist()), len(sequences)) for tags in np.split(said, edges)])
        for said in (truth.labels, *(each.argmax(axis=1) for each in outputs))
    ]
    return Answers(numbered[0], numbered[1:], tuple(_named(tags, truth.names) for tags in sequences))


def _named(tags: tuple[int, ...], names: Names) -> str:
    """``PER 1-2, LOC 5`` with the positions of the words from 1, or the tags where they are no spans."""
    if not all(map(_SPAN_TAG.fullmatch, names)):
        return textwrap.shorten(" ".join(names[tag] for tag in tags), LONGEST_NAME)
    spans = find_spans(np.array(tags, dtype=np.int64), np.array([len(tags)]), names)
    found = [
        f"{names[tags[first]][2:] or 'span'} {first + 1}" + (f"-{last + 1}" if last > first else "")
        for first, last in zip(spans.first.tolist(), spans.last.tolist(), strict=True)
    ]
    return textwrap.shorten(", ".join(found), LONGEST_NAME) or "none"


KIND = replace(
    classification.KIND,
    auto_model="AutoModelForTokenClassification",
    problem_type=None,
    pipeline="token-classification",
    pipeline_options=", aggregation_strategy='simple'",
    read_labels=read_labels,
    read_text=read_text,
    tokenise=tokenise,
    of_words=True,
    per_token=True,
    strata=strata,
    measure=measure,
    contributions=contributions,
    constant_outputs=constant_outputs,
    answers=answers,
    refused={
        "--distil": "soft targets are compared per text, not per word; leave it out",
        "--reference": "its tokenizer splits words differently, and the study stores the tags per token; leave it out",
        "inspect": "its probes read one token per text, not one per word",
    },
)
