"""The command line: arguments to objects to exit code. Results go to standard output, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from budget_search.arguments import parse, request_from
from budget_search.errors import BudgetSearchError, UsageError
from budget_search.passwords import OPTION, VARIABLE, hidden, leave_the_title
from budget_search.request import Request, require_place
from budget_search.wording import printable

INTERRUPTED = 130
ONLY_THE_FULL_MODEL = 3
DEFAULT_STUDIES = "studies"
# Data may hold a word of megabytes, and a message quotes it.
LONGEST_WORD = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 bad input, 3 none found, 130 interrupted)."""
    received = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        leave_the_title(received)
    verbose = "-v" in received or "--verbose" in received
    try:
        arguments = parse(received)
        verbose = bool(arguments.verbose)
        _listen_to_signals()
        return _COMMANDS[arguments.command](arguments, received)
    except BudgetSearchError as error:
        if verbose:
            traceback.print_exc()
        print(f"budget-search: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("budget-search: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the report has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        print(
            f"budget-search: unexpected {type(error).__name__}: {_one_line(error)}; -v shows where; "
            "finished evaluations are kept, the same command goes on with them",
            file=sys.stderr,
        )
        return 1


def _run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    request = request_from(arguments)
    from budget_search.destination import refuse_foreign
    from budget_search.interim import best_so_far
    from budget_search.location import locate
    from budget_search.progress import Console
    from budget_search.session import answer

    if arguments.command == "plan" or arguments.dry_run:
        return _plan(request, arguments)
    command = hidden(shlex.join(["budget-search", *received]))
    if request.output:
        refuse_foreign(Path(request.output))
    found = locate(request)
    console = Console(quiet=bool(arguments.quiet))
    console.say(f"budget-search: {request.task} with {request.model}, study {found.folder.path}")
    try:
        report = answer(found, console, _without_places(received))
    except KeyboardInterrupt:
        console.close()
        with contextlib.suppress(BudgetSearchError):
            print(f"interrupted. {best_so_far(found)}", file=sys.stderr)
        where = f" (with {VARIABLE} as it was)" if request.storage and OPTION not in command else ""
        print(f"To go on{where}: {command}", file=sys.stderr)
        return INTERRUPTED
    finally:
        console.close()
    if (page := found.folder.page).exists():
        console.say(f"report with pictures: {page}")
    trust = request.trust_remote_code
    if request.output:
        try:
            _export_answer(found.folder, report, min(request.deltas), Path(request.output), trust=trust)
        except BudgetSearchError:
            # The search is finished all the same.
            _print(report, arguments.format or "table")
            raise
    _print(report, arguments.format or "table", exported=request.output)
    none_found = all(result.is_full for result in report.results)
    return ONLY_THE_FULL_MODEL if none_found and arguments.fail_if_none else 0


def _plan(request: Request, arguments: argparse.Namespace) -> int:
    if arguments.format not in (None, "table", "json"):
        raise UsageError(f"--format {arguments.format}: a plan comes as table or json")
    from budget_search.location import locate
    from budget_search.progress import Console

    found = locate(request)
    console = Console(quiet=bool(arguments.quiet))
    try:
        from budget_search.forecast import forecast

        expected = forecast(found, console)
    finally:
        console.close()
    if arguments.format == "json":
        from budget_search.records import plain

        print(json.dumps(plain(expected), indent=2, allow_nan=False), flush=True)
    else:
        from budget_search.outlook import outlook

        print(outlook(expected), flush=True)
    return 0


def _report(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.archive import report_for
    from budget_search.listing import find_study
    from budget_search.render import averaged, render

    for name in arguments.studies:
        require_place("STUDY", name)
    for model in arguments.reference or ():
        require_place("--reference", model)
    require_place("--output", arguments.output)
    require_place("--plots", arguments.plots)
    if arguments.plots and len(arguments.studies) > 1 and not arguments.curves:
        raise UsageError(f"--plots draws one study (several with --curves), received {len(arguments.studies)}")
    if arguments.delta and arguments.curves:
        raise UsageError("--curves shows every number of dropped layers, whatever the loss; leave --delta out")
    folders = [find_study(name, arguments.studies_dir or DEFAULT_STUDIES) for name in arguments.studies]
    if arguments.reference:
        _set_beside(folders, arguments)
    reports = [report_for(folder, tuple(arguments.delta or ())) for folder in folders]
    text = (averaged if arguments.curves else render)(reports, arguments.format).rstrip("\n")
    if arguments.plots:
        from budget_search.plots import draw, draw_averages

        figures = draw_averages(reports) if arguments.curves else draw(reports[0])
        _save_plots(figures, Path(arguments.plots), "--plots")
    if arguments.output is None:
        print(text, flush=True)
        return 0
    _write(Path(arguments.output), text, "--output")
    return 0


def _set_beside(folders: Sequence[Any], arguments: argparse.Namespace) -> None:
    from budget_search.location import references_of
    from budget_search.progress import Console
    from budget_search.reference import Means, with_references

    parents = references_of(arguments.reference, arguments.offline)
    means = Means(trust_remote_code=arguments.trust_remote_code, wait=arguments.wait)
    console = Console()
    for folder in folders:
        with_references(folder, parents, means, console)


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf8")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def _save_plots(figures: Any, folder: Path, option: str) -> None:
    from budget_search.plots import save

    try:
        written = save(figures, folder)
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written: {error.strerror}") from error
    print(f"wrote {len(written)} pictures to {folder}", file=sys.stderr)


def _inspect(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.examine import inspect_study
    from budget_search.listing import find_study
    from budget_search.progress import Console
    from budget_search.render import inspected

    require_place("STUDY", arguments.study)
    require_place("--output", arguments.output)
    folder = find_study(arguments.study, arguments.studies_dir or DEFAULT_STUDIES)
    found = inspect_study(folder, Console(), model=arguments.model, trust_remote_code=arguments.trust_remote_code)
    if arguments.output:
        from budget_search.layer_pictures import LAYER_PICTURES
        from budget_search.plots import drawn

        output = Path(arguments.output)
        _save_plots(drawn(LAYER_PICTURES, found), output, "--output")
        for form, name in (("markdown", "inspection.md"), ("json", "inspection.json")):
            _write(output / name, inspected(found, form), "--output")
    print(inspected(found, arguments.format), flush=True)
    return 0


def _export(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.archive import report_for
    from budget_search.destination import refuse_foreign
    from budget_search.listing import find_study
    from budget_search.push import push, require_pushable

    if len(arguments.delta) != 1:
        raise UsageError(f"export takes one --delta, received {len(arguments.delta)}")
    require_place("STUDY", arguments.study)
    require_place("--output", arguments.output)
    refuse_foreign(Path(arguments.output))
    repository = arguments.push_to_hub
    if repository is not None:
        require_pushable(repository)
    elif arguments.private:
        raise UsageError("--private says who sees what --push-to-hub uploads; name that too")
    folder = find_study(arguments.study, arguments.studies_dir or DEFAULT_STUDIES)
    report = report_for(folder, tuple(arguments.delta))
    trust = arguments.trust_remote_code
    _export_answer(folder, report, arguments.delta[0], Path(arguments.output), name=repository, trust=trust)
    if repository is not None:
        address = push(Path(arguments.output), repository, private=arguments.private)
        print(f"uploaded to {address}", file=sys.stderr)
    return 0


def _export_answer(
    folder: Any, report: Any, delta: float, output: Path, *, trust: bool, name: str | None = None
) -> None:
    from budget_search.handover import hand_over

    exported = hand_over(folder, report, delta, output, name, trust_remote_code=trust)
    print(
        f"exported to {output}: re-loaded, it gives the same logits on {exported.examples:,} held-out examples; "
        f"held-out score {exported.held_out_score:.2f}",
        file=sys.stderr,
    )


def _ls(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.listing import studies_table

    print(studies_table(arguments.studies_dir or DEFAULT_STUDIES))
    return 0


def _tasks(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.listing import tasks_table

    print(tasks_table())
    return 0


def _doctor(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    from budget_search.listing import doctor_table

    print(doctor_table())
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {
    "run": _run,
    "plan": _run,
    "report": _report,
    "inspect": _inspect,
    "export": _export,
    "ls": _ls,
    "tasks": _tasks,
    "doctor": _doctor,
}


def _without_places(received: Sequence[str]) -> str:
    """The command for whoever reads the report: with base names, not with where things lie on this machine."""
    return shlex.join(["budget-search", *map(_base_name, received)])


def _base_name(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if "://" in value:
        # An address may hold a password.
        value = "URL"
    elif Path(value).is_absolute() or value.startswith(".."):
        value = Path(value).name
    return option + equals + value


def _print(report: Any, form: str, exported: str | None = None) -> None:
    from budget_search.render import render

    print(render([report], form, exported).rstrip("\n"), flush=True)


def _listen_to_signals() -> None:
    """SIGTERM like Ctrl-C; a second one of either quits at once."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(INTERRUPTED))
        # joblib would complain of the evaluations that are not finished.
        warnings.simplefilter("ignore")
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def _one_line(error: BaseException) -> str:
    words = (word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..." for word in hidden(str(error)).split())
    return printable(" ".join(words)) or type(error).__name__
