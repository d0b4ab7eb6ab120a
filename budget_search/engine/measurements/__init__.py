"""What models cost here, and what their layers do: sizes, FLOPs, latency, speed of training, similarity and probes.

Start with ``cost`` (a model's size and inference time), then ``speed`` (how fast this device trains), then
``evaluation_cost`` (what a search's evaluations will take).
"""
