"""Plots of reports, drawn with matplotlib: one function per plot, in a table per subject.

Imports ``report`` and the rooms below it. Start with ``figures`` (draw, save, inline), then ``study_plots``.
"""
