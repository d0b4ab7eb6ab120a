"""The embedded default: a sentence-pair task made by code, and where the small pre-trained model for it lies.

The question is whether the second text follows from the first. Every text has exactly one use, decided by a checksum of
its words: training, validation or pre-training. So no text the model was pre-trained on comes back in the task, and
none of the training split in the validation split.
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
    """The one use this text may be put to."""
    return _USES[zlib.crc32(text.lower().encode()) % len(_USES)]


def examples(split: str, count: int | None = None) -> list[dict[str, Any]]:
    """The first `count` rows of a split (all unless told): `premise`, `hypothesis`, `label`; no premise comes twice."""
    if split not in SIZES:
        raise ValueError(f"the demo task has the splits {', '.join(SIZES)}; there is no {split!r}")
    return list(islice(_rows(split), SIZES[split] if count is None else min(count, SIZES[split])))


def passages(seed: int) -> Iterator[tuple[str, str]]:
    """Texts for pre-training without end: a scene and true statements about it.

    Neighbours belong together, as paragraphs of a document do: several scenes of one kind about the same people and
    things, none told twice.
    """
    rng = Random(f"pretraining {seed}")
    while True:
        kind, size = rng.choice(KINDS)
        cast, told = small_cast(rng, size), ""
        for _ in range(6):
            scene = kind(rng, cast)
            statements = [true for true, _ in scene.claims]
            if use_of(scene.text) == "pretraining" and not any(statement in told for statement in statements):
                told += f"{scene.text} {' '.join(statements)} "
                yield scene.text, " ".join(rng.sample(statements, rng.randint(1, len(statements))))


def _rows(split: str) -> Iterator[dict[str, Any]]:
    rng = Random(f"demo task {split}")
    seen: set[str] = set()
    for found in _scenes(rng, split):
        if found.text in seen:
            continue
        label = len(seen) % 2  # exactly balanced, whatever prefix is taken
        seen.add(found.text)
        true, false = rng.choice(found.claims)
        yield {"premise": found.text, "hypothesis": true if label else false, "label": label}


def _scenes(rng: Random, use: str) -> Iterator[Scene]:
    everything = Cast()
    while True:
        kind, _ = rng.choice(KINDS)
        scene = kind(rng, everything)
        if use_of(scene.text) == use:
            yield scene
