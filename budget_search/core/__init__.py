"""The words of the project as records: layer sets, recipe, search configuration, trials, limits, errors.

Imports the standard library only. Start with ``layers`` (which layers stay), then ``trial`` (what an evaluation is
called and what it measured), then ``config`` (what makes two trials comparable).
"""
