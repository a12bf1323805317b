"""JSON that anybody may have written, as dataclasses. Standard library only."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal


def parsed(kind: Any, value: object, where: str) -> Any:
    """`value` of JSON as `kind`: a dataclass, str, int, float, Literal, tuple, dict or optional.

    Raises ValueError, naming the part after `where`, unless every field is there and of its type,
    and nothing else is.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parsed_fields(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            parts = zip(arguments, value, strict=True)
            return tuple(parsed(part, one, f"{where}[{i}]") for i, (part, one) in enumerate(parts))
    if origin is dict and isinstance(value, dict):
        key, content = arguments
        return {parsed(key, k, where): parsed(content, v, f"{where}.{k}") for k, v in value.items()}
    if type(None) in arguments:
        kinds = [part for part in arguments if part is not type(None)]
        return None if value is None else parsed(kinds[0], value, where)
    if set(arguments) == {int, float, str} and (type(value) is str or _is_finite(value)):
        return value
    if kind is float and _is_finite(value):
        return float(typing.cast(float, value))
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {str(value)[:40]!r}")


def _is_finite(value: object) -> bool:
    """Whether this is a number, neither too large for a float nor a truth value."""
    try:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    except OverflowError:
        return False


def _parsed_fields(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is missing")
    kinds = typing.get_type_hints(kind)
    for name in value:
        if name not in kinds:
            raise ValueError(f"{where} has an unknown part {name!r}")
    for field in dataclasses.fields(kind):
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in value and not optional:
            raise ValueError(f"{where}.{field.name} is missing")
    return kind(
        **{name: parsed(kinds[name], content, f"{where}.{name}") for name, content in value.items()}
    )
