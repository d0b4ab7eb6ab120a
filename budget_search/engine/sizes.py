"""Choose the size from which more gains little: the number of lanes on a GPU, or the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable

# A larger size must make the total faster by this share.
LEAST_GAIN = 0.1


def largest_that_pays(sizes: Iterable[int], rate: Callable[[int], float]) -> int:
    """The last of these ascending sizes up to which each was at least a tenth faster than the one before.

    ``rate`` is the work per second at a size, measured on demand; 0 if the size does not fit into memory.
    """
    best_size, best = 0, 0.0
    for size in sizes:
        found = rate(size)
        if best_size and found <= (1 + LEAST_GAIN) * best:
            break
        best_size, best = size, found
    return best_size
