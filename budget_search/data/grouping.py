"""Groups of train examples that share texts. Splits are carved in whole groups, so that no text leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from budget_search.data.shared_phrases import contained_pairs

# A text in more than this number and this fraction of the examples is treated as a prompt, which links nothing.
PROMPT_EXAMPLES = 100
PROMPT_SHARE = 0.05


@dataclass(frozen=True)
class Groups:
    """The groups that may be carved out of train.

    Carving group ``i`` adds ``members[i]`` to a split and removes ``leaving[i]``, which includes the members, from
    train. Both hold row numbers of train. Examples in no group stay in train unless they leave with a group.
    ``prompts`` counts the texts that occur in too many examples to link them.
    """

    members: Sequence[Sequence[int]]
    leaving: Sequence[Sequence[int]]
    prompts: int = 0


def normalised(text: str) -> str:
    """The text in lower case with single spaces."""
    return " ".join(text.casefold().split())


def number_texts(columns: Sequence[Sequence[str]], numbers: dict[str, int]) -> np.ndarray:
    """Number all texts, int64 (examples, columns); texts that are equal after normalisation get the same number.

    ``numbers`` maps the texts seen so far to their numbers and is extended. An empty text gets the number -1.
    """
    coded = []
    for column in columns:
        texts = [normalised(text) for text in column]
        coded.append([numbers.setdefault(text, len(numbers)) if text else -1 for text in texts])
    return np.array(coded, dtype=np.int64).T


def is_first_occurrence(numbers: np.ndarray) -> np.ndarray:
    """Whether each example is the first one with its texts: bool (examples,)."""
    _, first = np.unique(numbers, axis=0, return_index=True)
    is_first = np.zeros(len(numbers), dtype=bool)
    is_first[first] = True
    return is_first


def pair_groups(numbers: np.ndarray, rows: np.ndarray, held_out: np.ndarray) -> Groups:
    """Group ``rows`` by the connected components of their shared texts.

    Components that share a text with ``held_out`` are left out. Texts that occur in very many examples (prompts) do not
    link examples.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    everything = np.concatenate([numbers[rows], held_out])
    prompts = _prompts(everything)
    links = (everything >= 0) & ~np.isin(everything, prompts)
    # A bipartite graph: the nodes are the examples, followed by the texts.
    example, column = np.nonzero(links)
    text = everything[example, column] + len(everything)
    nodes = len(everything) + int(everything.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(example), dtype=np.int8), (example, text)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(everything)]
    free = ~np.isin(component[: len(rows)], component[len(rows) :])
    members = _group_by_key(component[: len(rows)][free], rows[free])
    return Groups(members, members, len(prompts))


def phrase_groups(texts: Sequence[str], rows: np.ndarray) -> Groups:
    """One group per text that no other text contains; the texts that it contains leave train with it.

    Only ``rows`` are grouped; their normalised texts must be distinct.
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
    """The numbers of the texts that occur in very many examples."""
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    return np.flatnonzero(counts > max(PROMPT_EXAMPLES, PROMPT_SHARE * len(numbers)))


def _group_by_key(keys: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Group rows by key, in order of first appearance."""
    groups: dict[int, list[int]] = {}
    for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
        groups.setdefault(key, []).append(row)
    return list(groups.values())
