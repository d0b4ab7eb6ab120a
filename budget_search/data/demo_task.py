"""The built-in demo: a generated sentence-pair task, and the texts that its small model was pre-trained on.

The task is whether the second text follows from the first. A checksum of the words assigns every text to exactly one
use: training, validation or pre-training. So no pre-training text appears in the task, and no training text appears in
the validation split.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

from budget_search.data.demo_language import KINDS, Cast, Scene, small_cast

LABELS = ("does not follow", "follows")
SIZES = {"train": 8000, "validation": 2000}

_USES = ("train", "validation", "pretraining", "pretraining")


def use_of(text: str) -> str:
    """The only use that this text is assigned to."""
    return _USES[zlib.crc32(text.lower().encode()) % len(_USES)]


def examples(split: str, count: int | None = None) -> list[dict[str, Any]]:
    """The first ``count`` rows of a split, all by default: ``premise`` (unique), ``hypothesis``, ``label``."""
    if split not in SIZES:
        raise ValueError(f"the demo task has the splits {', '.join(SIZES)}; there is no {split!r}")
    return list(islice(_rows(split), SIZES[split] if count is None else min(count, SIZES[split])))


def passages(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of pre-training texts: a scene and true statements about it.

    Consecutive passages are related like the paragraphs of a document: up to six scenes of one kind about the same
    people and things, without repetition.
    """
    rng = Random(f"pretraining {seed}")
    while True:
        kind, size = rng.choice(KINDS)
        cast, used = small_cast(rng, size), ""
        for _ in range(6):
            scene = kind(rng, cast)
            statements = [true for true, _ in scene.claims]
            if use_of(scene.text) == "pretraining" and not any(statement in used for statement in statements):
                used += f"{scene.text} {' '.join(statements)} "
                yield scene.text, " ".join(rng.sample(statements, rng.randint(1, len(statements))))


def _rows(split: str) -> Iterator[dict[str, Any]]:
    rng = Random(f"demo task {split}")
    seen: set[str] = set()
    for scene in _scenes(rng, split):
        if scene.text in seen:
            continue
        label = len(seen) % 2  # labels alternate, so that every prefix is balanced
        seen.add(scene.text)
        true, false = rng.choice(scene.claims)
        yield {"premise": scene.text, "hypothesis": true if label else false, "label": label}


def _scenes(rng: Random, use: str) -> Iterator[Scene]:
    everything = Cast()
    while True:
        kind, _ = rng.choice(KINDS)
        scene = kind(rng, everything)
        if use_of(scene.text) == use:
            yield scene
