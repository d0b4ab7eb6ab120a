"""The GPU engine: training steps captured once as CUDA graphs and replayed, several evaluations at a time on one GPU.

Start with ``captured_steps`` (one step as a graph), then ``lanes`` (concurrent fine-tunes). ``cuda`` is the only module
that calls CUDA; everything else runs, and is tested, without a GPU.
"""
