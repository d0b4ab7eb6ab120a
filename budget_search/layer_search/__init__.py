"""The search: which layer sets to measure, and which of them is the answer. Its decisions depend on the trials only.

Imports ``core``; never torch. Start with ``loop``, which yields one evaluation after another, then
``strategies/greedy`` (how layer sets are proposed), ``acceptance`` and ``verdict`` (when a set holds).
"""
