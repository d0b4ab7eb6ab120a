"""From a request to an answer: open the study, search, measure, report, export. Here the rooms meet.

Imports every room but ``cli``. Start with ``request`` and ``resolve`` (what is asked, and the study it leads to), then
``search`` (the way from there to a report).
"""
