"""Searches a decoder (a Llama-like model) with a classification head.

    python examples/decoder.py sst2 HuggingFaceTB/SmolLM2-135M

The head reads the last token. If the tokenizer has no padding token, its end token is used.
"""

from __future__ import annotations

import sys
from typing import Any

import budget_search as bs


def main(task: str, model: str, **options: Any) -> None:
    report = bs.search(task=task, model=model, deltas=[0.01, 0.02, 0.03], **options)
    for result in report.results:
        print(report.answer_sentence(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
