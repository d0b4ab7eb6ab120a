"""Models as stacks of layers: find the layers, keep some of them, load, freeze and export models.

Imports ``data``, ``storage`` and ``core``. Start with ``keep_layers``, then ``layer_stack`` (how the layers of any
model are found).
"""
