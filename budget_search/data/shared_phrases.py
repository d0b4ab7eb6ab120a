"""Find texts that are contained in other texts as word sequences, by comparing rolling hashes of word windows.

The hash of a window is a difference of two prefix sums, so all windows of one length are hashed in one vectorised
step. With 64-bit hashes and some millions of windows, the probability of a false match is about one in a million.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Texts at least this long are first looked up by this many leading words, then compared as a whole.
ANCHOR = 8
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE_BASE = np.uint64(pow(int(_BASE), -1, 2**64))


def contained_pairs(texts: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """All (inner, outer) with ``texts[inner]`` a contiguous part of ``texts[outer]``: two int64 arrays (pairs,).

    ``texts`` are distinct, non-empty sequences of words. The running time is about linear in the number of words.
    """
    windows = _Windows(texts)
    lengths = windows.lengths
    wholes = windows.hashes(windows.starts, lengths)
    matches = [windows.matches(np.flatnonzero(lengths == size), wholes) for size in range(1, ANCHOR)]
    matches.append(windows.matches(np.flatnonzero(lengths >= ANCHOR), wholes))
    pairs = np.unique(np.concatenate(matches), axis=0)  # a text may occur twice in another
    return pairs[:, 0], pairs[:, 1]


class _Windows:
    """The concatenated words of all texts, with prefix sums of their hashes."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        numbers: dict[str, int] = {}
        words = [numbers.setdefault(word, len(numbers)) for text in texts for word in text]
        self.lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.text_of = np.repeat(np.arange(len(texts)), self.lengths)
        values = _splitmix64(np.array(words, dtype=np.uint64))
        powers = np.cumprod(np.full(len(words), _BASE, dtype=np.uint64))
        self._unshift = np.cumprod(np.full(len(words), _INVERSE_BASE, dtype=np.uint64))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers)])

    def hashes(self, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Hashes of the windows that start at ``positions`` and have ``lengths`` words, modulo 2**64."""
        sums = self._sums[positions + lengths] - self._sums[positions]
        return np.asarray(sums * self._unshift[positions])

    def matches(self, inner: np.ndarray, wholes: np.ndarray) -> np.ndarray:
        """(inner, outer) for the texts ``inner``, int64 (pairs, 2); all have one length, or at least ANCHOR words."""
        if not len(inner):
            return np.empty((0, 2), dtype=np.int64)
        positions, lengths = self._candidates(inner)
        outer = self.text_of[positions]
        inside = positions + lengths <= self.starts[outer] + self.lengths[outer]
        proper = lengths < self.lengths[outer]
        positions, lengths, outer = (array[inside & proper] for array in (positions, lengths, outer))
        by_hash = inner[np.argsort(wholes[inner])]
        hashes = self.hashes(positions, lengths)
        index = np.minimum(np.searchsorted(wholes[by_hash], hashes), len(by_hash) - 1)
        same = (wholes[by_hash[index]] == hashes) & (self.lengths[by_hash[index]] == lengths)
        return np.stack([by_hash[index][same], outer[same]], axis=1)

    def _candidates(self, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions whose leading words match the start of one of these texts, and the length of that text."""
        size = min(int(self.lengths[inner].min()), ANCHOR)
        positions = np.flatnonzero(self.lengths[self.text_of] >= size)
        ends = (self.starts + self.lengths)[self.text_of[positions]]
        positions = positions[positions + size <= ends]
        beginnings = self.hashes(self.starts[inner], np.full(len(inner), size))
        anchors = np.unique(np.stack([beginnings, self.lengths[inner].astype(np.uint64)], axis=1), axis=0)
        hashes = self.hashes(positions, np.full(len(positions), size))
        first = np.searchsorted(anchors[:, 0], hashes, side="left")
        count = np.searchsorted(anchors[:, 0], hashes, side="right") - first
        repeated = np.repeat(np.arange(len(positions)), count)
        rank = np.arange(len(repeated)) - np.repeat(np.cumsum(count) - count, count)
        return positions[repeated], anchors[first[repeated] + rank, 1].astype(np.int64)


def _splitmix64(numbers: np.ndarray) -> np.ndarray:
    """Map small integers to well-mixed 64-bit values with splitmix64, the same in every process."""
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
