"""Extractive question answering as in SQuAD: the answer is a span of the context, or none.

In every window (see ``windows``) the model scores each token of the context as the first and as the last of the answer,
and a special token as "no answer here" (Devlin et al., 2019, sections 4.2 and 4.3). The answer is the span with the
highest sum in any window.
"""

from __future__ import annotations

import re
import string
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from budget_search.core.errors import UsageError
from budget_search.data import metrics
from budget_search.data.kinds import classification
from budget_search.data.kinds.kind import LONGEST_NAME, Answers, LabelCells, LabelsBySplit, Names, Truth
from budget_search.data.kinds.windows import NO_ANSWER, Answer, tokenise
from budget_search.data.labels import refuse_missing

LONGEST_ANSWER = 30
"""Tokens; longer passages are no answers, as in the examples of transformers."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_labels(raw: LabelCells) -> tuple[LabelsBySplit, Names]:
    """An ``Answer`` for every example, in an array of objects (examples,).

    A cell has SQuAD's form, ``{"text": [...], "answer_start": [...]}`` (both empty: no answer), or a list of such
    records of one answer each, or is the text of the answer. Raises UsageError for another form, and for an answer that
    is not in its context.
    """
    refuse_missing(raw.single, raw.column)
    coded = {}
    for split, cells in raw.single.items():
        coded[split] = np.empty(len(cells), dtype=object)
        for number, (cell, context) in enumerate(zip(cells, raw.texts[split][-1], strict=True)):
            where = f"--label-column {raw.column}: the answer of example {number + 1} in {split}"
            texts, starts = _parts(cell, where)
            coded[split][number] = Answer(texts, _place(texts[0], starts[0], context, where)) if texts else Answer(())
    if not any(answer.texts for answer in coded["train"]):
        raise UsageError(f"--label-column {raw.column}: no question in train has an answer")
    return coded, ("first token", "last token")


def _parts(cell: Any, where: str) -> tuple[tuple[str, ...], list[int]]:
    """The texts of the answers and where they begin."""
    if isinstance(cell, str):
        return (cell.strip(),), [0]
    if isinstance(cell, list) and all(isinstance(each, dict) for each in cell):
        cell = {name: [each.get(name) for each in cell] for name in ("text", "answer_start")}
    record: dict[str, Any] = cell if isinstance(cell, dict) else {}
    texts, starts = record.get("text"), record.get("answer_start")
    if texts is None or starts is None or not (_are(str, texts) and _are(int, starts) and len(texts) == len(starts)):
        raise UsageError(
            f'{where} is {cell!r}; a text or {{"text": [...], "answer_start": [...]}} with as many texts as starts is '
            "needed, as in SQuAD"
        )
    return tuple(texts), starts


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _place(text: str, start: int, context: str, where: str) -> int:
    """Where a text begins in its context: the place that is nearest to ``start``. Raises UsageError."""
    places = [found.start() for found in re.finditer(f"(?={re.escape(text)})", context)] if text.strip() else []
    if not places:
        raise UsageError(
            f"{where}, {textwrap.shorten(repr(text), 60)}, is not in its context; correct it or leave it out"
        )
    return min(places, key=lambda place: abs(place - start))


def strata(train: np.ndarray, classes: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Whether a question has an answer."""
    return lambda labels: np.array([bool(answer.texts) for answer in labels], dtype=np.int64), 2


# -- scores ---------------------------------------------------------------------------------------------------------


def given_answers(outputs: np.ndarray, truth: Truth) -> list[str]:
    """The text that a model gives as the answer to each question; empty for none.

    If the split has unanswerable questions, an answer is empty when the score of "no answer" exceeds that of the best
    passage in every window.
    """
    windows = truth.windows
    assert windows is not None
    first, last = outputs.astype(np.float64).T
    none = windows.places[:, 0] == NO_ANSWER[0]
    best, end = _best_passages(first, last, _inside(truth.sizes, none))
    texts = []
    edges = np.concatenate([[0], np.cumsum(truth.sizes)])[np.concatenate([[0], np.cumsum(windows.each)])]
    may_be_none = any(len(each) == 1 for each in windows.texts)
    for number, (context, *_) in enumerate(windows.texts):
        rows = slice(edges[number], edges[number + 1])
        chosen = edges[number] + int(np.argmax(best[rows]))
        no_answer = (first + last)[rows][none[rows]].min()
        if not np.isfinite(best[chosen]) or (may_be_none and no_answer > best[chosen]):
            texts.append("")
        else:
            texts.append(context[windows.places[chosen, 0] : windows.places[end[chosen], 1]].strip())
    return texts


def _inside(sizes: np.ndarray, none: np.ndarray) -> np.ndarray:
    """The number of each row's window, and -1 for rows that are no tokens of a context: int64 (rows,)."""
    return np.where(none, -1, np.repeat(np.arange(len(sizes)), sizes))


def _best_passages(first: np.ndarray, last: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row as the first of a passage, the highest score of one that ends in its window, and its last row."""
    best, end = np.full(len(first), -np.inf), np.arange(len(first))
    for further in range(min(LONGEST_ANSWER, len(first))):
        until = len(first) - further
        allowed = (window[:until] == window[further:]) & (window[:until] >= 0)
        scores = np.where(allowed, first[:until] + last[further:], -np.inf)
        better = np.flatnonzero(scores > best[:until])
        best[better], end[better] = scores[better], better + further
    return best, end


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces: SQuAD's rule for comparing answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact_match(given: str, accepted: str) -> float:
    return float(given == accepted)


def _squad_f1(given: str, accepted: str) -> float:
    """F1 of the words of two normalised texts (Rajpurkar et al., 2016, section 6.1)."""
    ours, theirs = given.split(), accepted.split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


_METRICS = {"squad_f1": _squad_f1, "exact_match": _exact_match}


def measure(names: Sequence[str], outputs: np.ndarray, truth: Truth) -> dict[str, float]:
    """The mean over the questions, each compared with the accepted answer that it is most like.

    Raises ValueError if an output is not finite.
    """
    metrics.require_finite(outputs)
    given = [normalised(text) for text in given_answers(outputs, truth)]
    return {name: 100 * float(np.mean(_each(name, given, truth))) for name in names}


def contributions(metric: str, outputs: np.ndarray, truth: Truth) -> np.ndarray:
    return 100 * _each(metric, [normalised(text) for text in given_answers(outputs, truth)], truth)


def _each(metric: str, given: Sequence[str], truth: Truth) -> np.ndarray:
    """The metric of every question, from 0 to 1."""
    compare = _METRICS[metric]
    pairs = zip(given, _accepted(truth), strict=True)
    return np.array([max(compare(text, other) for other in accepted) for text, accepted in pairs])


def _accepted(truth: Truth) -> list[list[str]]:
    """The accepted answers to every question, normalised; an empty text where there is none."""
    assert truth.windows is not None
    return [[normalised(text) for text in texts] or [""] for _, *texts in truth.windows.texts]


def constant_outputs(metric: str, truth: Truth) -> np.ndarray:
    """The best answer that looks at no text: none, or always the first tokens of the context."""
    windows = truth.windows
    assert windows is not None
    none = windows.places[:, 0] == NO_ANSWER[0]
    ends = np.cumsum(truth.sizes) - 1
    starts = ends - truth.sizes + 1
    candidates = [np.where(none[:, None], [[1.0, 1.0]], [[0.0, 0.0]]).astype(np.float32)]
    for length in (1, 2, 3, 5, 8, 13, 21, LONGEST_ANSWER):
        outputs = np.zeros_like(candidates[0])
        # If the special token comes first, the context begins after it, unless it is empty.
        begin = np.minimum(starts + none[starts], ends)
        outputs[begin, 0] = 1.0
        outputs[np.minimum(begin + length - 1, ends), 1] = 1.0
        candidates.append(outputs)
    return max(candidates, key=lambda outputs: measure((metric,), outputs, truth)[metric])


def mean_loss(outputs: np.ndarray, truth: Truth) -> float:
    """Mean cross-entropy of the first and of the last token in nats, per window."""
    starts = np.cumsum(truth.sizes) - truth.sizes
    logits = outputs.astype(np.float64)
    right = np.where(truth.labels == 1, logits, 0.0).sum() / len(starts)
    return float((np.logaddexp.reduceat(logits, starts).sum() / len(starts) - right) / 2)


def collapsed(outputs: np.ndarray, truth: Truth) -> bool:
    """Whether (nearly) all questions get the same answer, such as none."""
    said = answers([outputs], truth)
    return metrics.nearly_constant(said.models[0], said.labels)


def label_shares(truth: Truth) -> dict[str, float]:
    """The share of the questions that have an answer, and of those that have none."""
    assert truth.windows is not None
    answered = float(np.mean([len(each) > 1 for each in truth.windows.texts]))
    return {"answered": answered, "no answer": 1 - answered}


def answers(outputs: Sequence[np.ndarray], truth: Truth) -> Answers:
    """Every text is an answer of its own, and all accepted answers to a question are its label."""
    accepted = _accepted(truth)
    numbers: dict[str, int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    labels = np.array([number(texts[0]) for texts in accepted])
    models = []
    for each in outputs:
        given = [normalised(text) for text in given_answers(each, truth)]
        pairs = zip(given, accepted, strict=True)
        models.append(np.array([number(texts[0] if text in texts else text) for text, texts in pairs]))
    names = tuple(textwrap.shorten(text, LONGEST_NAME) or "no answer" for text in numbers)
    return Answers(labels, models, names)


USAGE = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForQuestionAnswering.from_pretrained({name!r}).eval()
question, context = "Who sings?", "Anna sings in Bergen."
inputs = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
places = inputs.pop("offset_mapping")[0]
in_context = torch.tensor([text == 1 for text in inputs.sequence_ids(0)])
with torch.inference_mode():
    said = model(**inputs)
scores = said.start_logits[0, :, None] + said.end_logits[0, None, :]
allowed = (in_context[:, None] & in_context).triu().tril(LONGEST - 1)
first, last = divmod(int(scores.where(allowed, -torch.inf).argmax()), len(in_context))
print(context[places[first, 0] : places[last, 1]].strip())""".replace("LONGEST", str(LONGEST_ANSWER))
"""The pipeline of this name is gone from transformers 5."""

KIND = replace(
    classification.KIND,
    auto_model="AutoModelForQuestionAnswering",
    problem_type=None,
    pipeline="question-answering",
    usage=USAGE,
    read_labels=read_labels,
    tokenise=tokenise,
    per_token=True,
    strata=strata,
    measure=measure,
    contributions=contributions,
    constant_outputs=constant_outputs,
    mean_loss=mean_loss,
    collapsed=collapsed,
    label_shares=label_shares,
    answers=answers,
    refused={
        "--distil": "soft targets are compared per text, not per token; leave it out",
        "--reference": "its tokenizer splits texts differently, and the study stores token positions; leave it out",
        "inspect": "its probes read one token per text, not every token of a context",
    },
)
