"""Run searches without fine-tunes: on generated models with known degradations, and on recorded tables of scores.

Imports ``data``, ``layer_search`` and ``core``; never torch. Start with ``generated_models``, then ``replay``.
"""
