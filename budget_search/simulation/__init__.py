"""Searches without fine-tunes: generated models whose truth is known, recorded tables, rehearsals of a search.

Imports ``data``, ``layer_search`` and ``core``; never torch. Start with ``generated_models``, then ``replay``.
"""
