"""Convert frozen dataclasses to and from JSON, based on their type annotations."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from budget_search.core.errors import StudyError

Record = TypeVar("Record")

OMIT_IF_NONE = {"omit_if_none": True}
"""Field metadata: leave the field out of the JSON if it is None."""
NOT_SERIALIZED = {"not_serialized": True}
"""Field metadata: the field belongs to this process and is neither written nor read."""


def to_plain(value: Any) -> Any:
    """Convert records and containers to dicts and lists for JSON; a non-finite number becomes None."""
    if dataclasses.is_dataclass(value):
        pairs = ((item, getattr(value, item.name)) for item in dataclasses.fields(value))
        return {
            item.name: to_plain(content)
            for item, content in pairs
            if not item.metadata.get("not_serialized")
            and (content is not None or not item.metadata.get("omit_if_none"))
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(content) for key, content in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(content) for content in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def read_record(kind: type[Record], fields: Any, where: str) -> Record:
    """Build the dataclass ``kind`` from a JSON object; unknown keys are ignored.

    ``where`` names the object in messages. Raises StudyError if a value is missing or has the wrong type.
    """
    if not isinstance(fields, Mapping):
        raise StudyError(f"{where} must be an object, it is {fields!r}")
    hints = get_type_hints(kind)
    own = {item.name for item in dataclasses.fields(kind) if item.metadata.get("not_serialized")}  # type: ignore[arg-type]
    values = {
        name: _read(hints[name], fields[name], f"{where}.{name}") for name in hints if name in fields.keys() - own
    }
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{where}: {error}") from error


def _read(kind: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the annotated type ``kind``."""
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
