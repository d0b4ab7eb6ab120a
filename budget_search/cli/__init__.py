"""The command line: parser, configuration file and environment, progress, one module per subcommand.

Imports ``app`` and the rooms below it. Modules load the standard library only; heavy imports are inside functions.
Start with ``main``, then ``commands/run``.
"""
