"""Where evaluations run side by side: processes of this machine, GPUs, a Dask cluster; those of a user's objective too.

Start with ``workers``. Imports the other modules of the engine.
"""
