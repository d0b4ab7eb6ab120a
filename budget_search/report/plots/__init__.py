"""Pictures of reports, drawn by matplotlib: one function per picture, in a table per subject.

Imports ``report`` and the rooms below it. Start with ``figures`` (draw, save, inline), then ``study_plots``.
"""
