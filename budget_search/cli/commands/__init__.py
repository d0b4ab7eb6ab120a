"""The subcommands: one module each, and one row here.

A module has ``HELP`` (its line in ``--help``), ``DESCRIPTION``, ``add_options(parser)`` and ``run(arguments,
received)``, which returns the exit code. ``received`` is the command line as typed. Importing a module loads the
standard library only.
"""

from budget_search.cli.commands import doctor, export, inspect, ls, plan, report, run, tasks

COMMANDS = {
    "run": run,
    "plan": plan,
    "report": report,
    "inspect": inspect,
    "export": export,
    "ls": ls,
    "tasks": tasks,
    "doctor": doctor,
}
