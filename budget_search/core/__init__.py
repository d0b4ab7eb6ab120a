"""The records that all other rooms share: layer sets, recipe, search configuration, trials, limits, errors.

Imports the standard library only. Start with ``layers`` (which layers are kept), then ``trial`` (the key and the
measurements of one evaluation), then ``config`` (everything two comparable trials share).
"""
