"""Run evaluations concurrently: in processes, on GPUs, on a Dask cluster, or with a user's objective.

Start with ``workers``. Imports the other modules of the engine.
"""
