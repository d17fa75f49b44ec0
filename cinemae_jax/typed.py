"""Checks a nested mapping against a dataclass and its type hints, and converts it."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def read(config: Mapping[str, Any], kind: type[T], *, saved: bool = False) -> T:
    """Converts a config (``ConfigDict.to_dict``) to a dataclass.

    Args:
      config: nested mapping.
      kind: dataclass whose fields are numbers, strings, tuples, literals or dataclasses.
      saved: the config was saved with a detector, perhaps by a version with fewer fields; fields
        that have a default may be missing.

    Raises:
      ValueError: naming the first field that is missing, unknown, of the wrong type or out of
        range.
    """
    return _read(kind, config, "config", saved)


def require(section: str, settings: Any, **ranges: tuple[float, float | None]) -> None:
    """Checks numeric fields of a section against closed ranges.

    Args:
      section: its name in the config file.
      settings: the section.
      **ranges: (minimum, maximum) of each field; a maximum of None means no limit.

    Raises:
      ValueError: naming the first field that is out of range or NaN.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= (math.inf if high is None else high):  # also refuses NaN
            bounds = f"between {low} and {high}" if high is not None else f"{low} or more"
            raise ValueError(f"{section}.{name} must be {bounds}, is {value}")


def _read(kind: Any, section: Any, name: str, saved: bool) -> Any:
    if not isinstance(section, Mapping):
        raise ValueError(f"{name} must be a section with fields, is {section!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(section) - set(hints))
    defaults = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    missing = sorted(set(hints) - set(section) - (defaults if saved else set()))
    if unknown or missing:
        problems = [f"{name}.{field} is not a setting" for field in unknown]
        problems += [f"{name}.{field} is missing" for field in missing]
        raise ValueError("; ".join(problems) + f" (known fields: {', '.join(hints)})")
    values = {
        field: _read(hint, section[field], f"{name}.{field}", saved)
        if dataclasses.is_dataclass(hint)
        else _typed(hint, section[field], f"{name}.{field}")
        for field, hint in hints.items()
        if field in section
    }
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a tuple, is {value!r}")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"{name} must be a tuple of {len(kinds)} values, is {value!r}")
        pairs = zip(kinds, value, strict=True)
        return tuple(_typed(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))
    if origin is typing.Literal:
        return value  # checked by the dataclass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be {hint.__name__}, is {value!r}")
    return value
