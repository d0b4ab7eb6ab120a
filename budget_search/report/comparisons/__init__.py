"""Compare layer sets, strategies and studies, as in the papers' tables and figures.

Start with ``measured_sets``. Imports the report and the rooms below it, no renderer.
"""
