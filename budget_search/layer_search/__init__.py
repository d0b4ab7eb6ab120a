"""Decides which layer sets to measure and which of them is the answer; pure functions of the trials so far.

Imports ``core``; never torch. Start with ``loop``, which asks for one evaluation after another, then
``strategies/greedy`` (what proposes layer sets), ``confirmation`` and ``verdict`` (when a set holds). The acceptance
rule is ``SearchState.holds`` in ``state``.
"""
