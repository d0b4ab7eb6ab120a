"""Which train examples belong together, so that no split is carved through the middle of what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from budget_search.data.shared_phrases import contained_pairs

# A text in more examples than this many, and than this fraction of them, is a prompt rather than a source.
PROMPT_EXAMPLES = 100
PROMPT_SHARE = 0.05


@dataclass(frozen=True)
class Groups:
    """What may be carved out of train. Group ``i`` gives ``members[i]`` to a split, and ``leaving[i]`` leave train.

    Both hold rows of train; members leave too. Examples in no group stay in train unless they leave with another.
    ``prompts`` counts the texts that stand in so many examples that they were not taken for a link.
    """

    members: Sequence[Sequence[int]]
    leaving: Sequence[Sequence[int]]
    prompts: int = 0


def normalised(text: str) -> str:
    """Without differences of case and white space."""
    return " ".join(text.casefold().split())


def number_texts(columns: Sequence[Sequence[str]], numbers: dict[str, int]) -> np.ndarray:
    """A number for every text, int64 (examples, columns), equal where the normalised texts are.

    ``numbers`` is the register of texts seen so far, and grows. An empty text gets the number -1.
    """
    coded = []
    for column in columns:
        words = [normalised(text) for text in column]
        coded.append([numbers.setdefault(text, len(numbers)) if text else -1 for text in words])
    return np.array(coded, dtype=np.int64).T


def first_of_each(numbers: np.ndarray) -> np.ndarray:
    """Whether an example is the first with its texts: bool (examples,)."""
    _, first = np.unique(numbers, axis=0, return_index=True)
    is_first = np.zeros(len(numbers), dtype=bool)
    is_first[first] = True
    return is_first


def pair_groups(numbers: np.ndarray, rows: np.ndarray, held_out: np.ndarray) -> Groups:
    """Pairs linked by shared texts, however many steps apart, stay together; only ``rows`` are grouped.

    Groups that share a text with ``held_out`` cannot be carved. Texts in very many examples link nothing.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    everything = np.concatenate([numbers[rows], held_out])
    prompts = _prompts(everything)
    links = (everything >= 0) & ~np.isin(everything, prompts)
    # A graph whose nodes are the examples and, after them, the texts.
    example, column = np.nonzero(links)
    text = everything[example, column] + len(everything)
    nodes = len(everything) + int(everything.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(example), dtype=np.int8), (example, text)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(everything)]
    free = ~np.isin(component[: len(rows)], component[len(rows) :])
    members = _gathered(component[: len(rows)][free], rows[free])
    return Groups(members, members, len(prompts))


def phrase_groups(texts: Sequence[str], rows: np.ndarray) -> Groups:
    """Every text that stands inside no other one is a group; the texts inside it leave train with it.

    Only ``rows`` are looked at; their normalised texts must be different.
    """
    inner, outer = contained_pairs([normalised(texts[row]).split() for row in rows])
    whole = np.ones(len(rows), dtype=bool)
    whole[inner] = False
    of_whole = whole[outer]
    inside: dict[int, list[int]] = {int(row): [int(row)] for row in rows[whole]}
    for phrase, text in zip(rows[inner[of_whole]].tolist(), rows[outer[of_whole]].tolist(), strict=True):
        inside[text].append(phrase)
    return Groups([[row] for row in inside], list(inside.values()))


def _prompts(numbers: np.ndarray) -> np.ndarray:
    """The texts that stand in very many examples."""
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    return np.flatnonzero(counts > max(PROMPT_EXAMPLES, PROMPT_SHARE * len(numbers)))


def _gathered(keys: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Rows by key, both in order of first appearance."""
    groups: dict[int, list[int]] = {}
    for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
        groups.setdefault(key, []).append(row)
    return list(groups.values())
