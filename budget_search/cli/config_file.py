"""Read options from the environment and from a YAML file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_search.app.request import RECIPE_FIELDS, Request, parse_count, parse_delta
from budget_search.core.errors import UsageError
from budget_search.core.paths import require_valid_path
from budget_search.report.renderers import FORMATS

SEARCH_FIELDS = tuple(name for name in Request.__dataclass_fields__ if name not in ("deltas", "recipe_changes"))
OTHER_OPTIONS = ("delta", "format", "fail_if_none", "dry_run", "quiet", "verbose", *RECIPE_FIELDS)


def from_environment(names: Sequence[str]) -> dict[str, Any]:
    """The options among ``names`` that are set by variables ``BUDGET_SEARCH_NAME``. Raises UsageError."""
    prefix = "BUDGET_SEARCH_"
    options = {}
    known = [prefix + name.upper() for name in (*SEARCH_FIELDS, *OTHER_OPTIONS)]
    for variable in (set(os.environ) - set(known)) & {name for name in os.environ if name.startswith(prefix)}:
        if near := difflib.get_close_matches(variable, known, n=1, cutoff=0.9):
            raise UsageError(f"the environment variable {variable} matches no option; did you mean {near[0]}?")
    for name in names:
        text = os.environ.get(prefix + name.upper())
        if text is not None:
            options[name] = _typed(name, text.split() if name in _LISTS else text, f"{prefix}{name.upper()}")
    return options


def from_file(path: str | None) -> dict[str, Any]:
    """The options of a YAML file; none without a file. Raises UsageError."""
    if path is None:
        return {}
    import yaml

    require_valid_path("--config", path)
    # Not a pipe or a device, which might never end.
    if not Path(path).is_file():
        reason = "it is a folder" if Path(path).is_dir() else "there is no such file"
        raise UsageError(f"--config {path} cannot be read: {reason}; give a YAML file")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"--config {path} is not valid YAML: {_reason(error)}") from error
    if not isinstance(settings, Mapping):
        raise UsageError(f"--config {path} must hold `option: value` lines")
    options = {str(name).replace("-", "_"): value for name, value in settings.items()}
    known = {*SEARCH_FIELDS, *OTHER_OPTIONS}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"--config {path}: unknown {', '.join(unknown)}; allowed: {' '.join(sorted(known))}")
    for name, value in options.items():
        # "C:\\temp" in double quotes holds a tab.
        if any(char < " " for each in (value if isinstance(value, list) else [value]) for char in str(each)):
            raise UsageError(f"--config {path}: {name} is {value!r}, with control characters; {_BACKSLASH}")
    return {name: _typed(name, value, f"--config {path}: {name}") for name, value in options.items()}


_BACKSLASH = "in double quotes a backslash begins an escape: write a Windows path in single quotes"


def _reason(error: Exception) -> str:
    """The problem, and its line."""
    import yaml

    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return str(error).splitlines()[0]
    hint = f"; {_BACKSLASH}" if "escape" in str(error.problem) else ""
    return f"line {error.problem_mark.line + 1}: {error.problem}{hint}"


_LISTS = ("delta", "layers", "reference", "keep_layers", "drop_layers", "text_columns", "freeze")
_SWITCHES = ("wait", "offline", "trust_remote_code", "fail_if_none", "dry_run", "quiet", "verbose")
_WHOLE = (
    "seeds",
    "base_seed",
    "certify",
    "max_trials",
    "max_layers",
    "workers",
    "train_examples",
    "batch_size",
    "max_length",
)
_DECIMAL = (
    "confidence",
    "probability",
    "max_hours",
    "storage_timeout",
    "max_latency_ms",
    "epochs",
    "lr",
    "warmup",
    "layer_drop",
    "distil",
    "recovery",
)


def _typed(name: str, value: Any, where: str) -> Any:
    """The value of an option in the type that the command line gives it. Raises UsageError."""
    try:
        if name in _LISTS:
            texts = [str(item) for item in (value if isinstance(value, list) else [value])]
            return [parse_delta(text) for text in texts] if name == "delta" else texts
        if name in _SWITCHES:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
        if name in _WHOLE:
            return int(str(value))
        if name in _DECIMAL:
            return float(value)
        if name == "max_params":
            return _count(str(value), where)
        if name == "format" and str(value) not in FORMATS:
            raise UsageError(f"{where} {value}: unknown; allowed: {' '.join(FORMATS)}")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: cannot be {value!r}; it takes {_taken(name)}") from error
    return str(value)


def _taken(name: str) -> str:
    if name in _SWITCHES:
        return "true or false"
    return "a whole number" if name in _WHOLE else "a number"


def _count(text: str, where: str) -> int:
    try:
        return parse_count(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
