"""Makes a sentence-transformers encoder smaller, to be trained further.

    python examples/sentence_encoder.py sentence-transformers/all-MiniLM-L6-v2 0-2,4

Prints how much the cosine similarities of sentences change without further training.
Needs ``pip install sentence-transformers``.
"""

from __future__ import annotations

import sys

import numpy as np
from sentence_transformers import SentenceTransformer

import budget_search as bs

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A woman is playing the violin.",
    "Two men pushed carts through the woods.",
)


def main(name: str, layers: str, output: str = "smaller-encoder") -> float:
    encoder = SentenceTransformer(name, device="cpu")
    before = encoder.encode(SENTENCES, normalize_embeddings=True)
    kept = bs.LayerSet.parse(layers, encoder[0].model.config.num_hidden_layers)
    encoder[0].model = bs.keep_layers(encoder[0].model, kept.kept)
    encoder.save_pretrained(output)

    after = SentenceTransformer(output, device="cpu").encode(SENTENCES, normalize_embeddings=True)
    change = float(np.abs(before @ before.T - after @ after.T).mean())
    print(f"layers {kept}: similarities change by {change:.3f} on average, before any training")
    return change


if __name__ == "__main__":
    main(*sys.argv[1:])
