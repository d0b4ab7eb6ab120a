"""From a request to an answer: open the study, search, measure, report, export.

Imports every room but ``cli``. Start with ``request`` and ``resolve`` (the options, and the study that they lead
to), then ``search`` (from there to a report).
"""
