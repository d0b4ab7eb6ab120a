"""How much of something to use, where more helps until it does not: lanes of a GPU, examples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

# A larger size must make the total faster by this share.
LEAST_GAIN = 0.1


def largest_that_pays(sizes: Iterable[int], rate: Callable[[int], float]) -> int:
    """The last of these ascending sizes up to which each was faster than the one before by a tenth.

    ``rate`` is the work per second at a size, measured when asked for; 0 where the size does not fit into memory.
    """
    best_size, best = 0, 0.0
    for size in sizes:
        found = rate(size)
        if best_size and found <= (1 + LEAST_GAIN) * best:
            break
        best_size, best = size, found
    return best_size
