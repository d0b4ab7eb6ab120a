"""Evaluate layer sets: device, batches, the training loop, predictions, worker processes, measurements of cost.

Imports ``models`` and the rooms below it. Start with ``finetune`` (the training loop), then ``evaluation`` (one trial
from weights to score), then ``workers`` (many at a time).
"""
