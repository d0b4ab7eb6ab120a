"""The command line: parser, configuration file and environment, progress, one module per subcommand.

Imports ``app`` and the rooms below it; modules load the standard library only, what is heavy inside functions.
Start with ``main``, then ``commands/run``.
"""
