"""Layer sets, strategies and studies beside each other, as in the papers' tables and figures.

Start with ``measured_sets``. Imports the report as a value and what is below it, no renderer.
"""
