"""Measurements of models and layers: size, FLOPs, latency, training speed, similarity and probes.

Start with ``cost`` (a model's size and inference time), then ``speed`` (how fast this device trains), then
``evaluation_cost`` (what a search's evaluations will take).
"""
