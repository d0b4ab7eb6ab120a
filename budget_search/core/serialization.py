"""Frozen dataclasses to and from JSON, by their annotations alone."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from budget_search.core.errors import StudyError

Record = TypeVar("Record")

ABSENT_IF_NONE = {"absent_if_none": True}
"""Metadata of a field that is left out instead of being null."""
NEVER_WRITTEN = {"never_written": True}
"""Metadata of a field that holds for this process alone: it is neither written nor read."""


def plain(value: Any) -> Any:
    """Records and containers as objects and lists, as JSON has them; None for a number that is not finite."""
    if dataclasses.is_dataclass(value):
        pairs = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {
            item.name: plain(content)
            for item, content in pairs
            if not item.metadata.get("never_written")
            and (content is not None or not item.metadata.get("absent_if_none"))
        }
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, tuple | list):
        return [plain(content) for content in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def read_record(kind: type[Record], fields: Any, where: str) -> Record:
    """The dataclass ``kind`` from an object as JSON has it, by its annotations; unknown keys are skipped.

    ``where`` names the object in messages. Raises StudyError when a value is missing or of another type.
    """
    if not isinstance(fields, Mapping):
        raise StudyError(f"{where} must be an object, it is {fields!r}")
    hints = get_type_hints(kind)
    own = {item.name for item in dataclasses.fields(kind) if item.metadata.get("never_written")}  # type: ignore[arg-type]
    values = {
        name: _read(hints[name], fields[name], f"{where}.{name}") for name in hints if name in fields.keys() - own
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{where}: {error}") from error


def _read(kind: Any, value: Any, where: str) -> Any:
    """``value``, as JSON has it, as the annotated type ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and types.NoneType in arguments):
        return value
    if origin in (Union, types.UnionType):
        return _read(next(argument for argument in arguments if argument is not types.NoneType), value, where)
    if dataclasses.is_dataclass(kind):
        return read_record(kind, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and origin is None and type(value) is kind:
        return value
    raise StudyError(f"{where} cannot be {value!r}")
