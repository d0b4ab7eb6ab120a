"""The report of a study, and results derived from it: comparisons, averages, costs of other protocols.

Imports the rooms below it; never torch. Start with ``report`` and ``entries`` (the record; a column of the report is a
field of ``entries.Result``), then ``builder`` (from trials to the report) and ``sections`` (its tables, for every
text format). ``renderers`` and ``plots`` turn it into text and plots; the record imports neither.
"""
