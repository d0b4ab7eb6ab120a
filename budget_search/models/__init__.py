"""Transformers as stacks of layers: find them, keep some, compare, load, freeze, write as a checkpoint.

Imports ``data``, ``storage`` and ``core``. Start with ``keep_layers``, then ``layer_stack`` (how the layers of any
model are found).
"""
