# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Options against their types, ranges and choices, which stand in tables beside the fields."""

import dataclasses
import enum
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any


# What every number of a run fits in: tensors, data sets and files hold no larger integer.
_INTEGERS = 2**63

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", dict: "a mapping"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}


class _Short(reprlib.Repr):
    """Python refuses to write integers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 1000 else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """The value as messages show it; a long one is cut."""
    return _SHORT.repr(value)


def check_options(
    options: Any,
    ranges: Mapping[str, str],
    choices: Mapping[str, Collection[Any]],
    unchecked: Collection[str] = (),
) -> None:
    """Checks every field of a dataclass, and makes plain Python numbers and text of what only resembles them.

    Args:
        options: an instance of a dataclass, which is changed where a value is a numpy number or a path.
        ranges: intervals as mathematics writes them, such as `"[0, 1)"`, of a field or of each entry of its list.
        choices: the texts that a field can have.
        unchecked: fields that are left as they are.

    Raises:
        ValueError: for the first field whose value is of another type, outside its range or not among its choices.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        name = field.name
        if not field.init or name in unchecked:
            continue
        value, hint = _plain(getattr(options, name)), hints[name]
        if not _fits(value, hint):
            is_huge = isinstance(value, int) and abs(value) >= _INTEGERS
            raise ValueError(f"{name} is {shown(value)}; expected {describe(hint)}{' below 2**63' * is_huge}.")
        if value == "" and field.default != "":
            raise ValueError(f"{name} is empty; expected {describe(hint)}.")
        setattr(options, name, value)
        if name in ranges:
            require_in(name, value, ranges[name])
        if name in choices and value is not None:
            _require_choice(name, value, choices[name])


def require_in(name: str, value: Any, interval: str) -> None:
    """Raises ValueError unless the number, or each number of the list, is finite and in the interval; texts pass."""
    entries = value if isinstance(value, list) else [value]
    if not all(_is_in(entry, interval) for entry in entries if isinstance(entry, (int, float))):
        # What a float option takes may well be given as an integer.
        what = "numbers, each" if isinstance(value, list) else "a finite number"
        raise ValueError(f"{name} is {shown(value)}; expected {what} {_described(interval)}.")


def describe(hint: Any) -> str:
    """What a type takes, in words."""
    words = [_word(kind) for kind in _members(hint) if kind is not types.NoneType]
    return " or ".join(dict.fromkeys(words)) + (", or null" if types.NoneType in _members(hint) else "")


def _word(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if typing.get_origin(kind) is list:
        return f"a list of {_PLURALS.get(typing.get_args(kind)[0], 'values')}"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return _NAMES.get(typing.get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows; text beside an enumeration stands for its members."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    members = typing.get_args(hint) if is_union else (hint,)
    has_enum = any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in members)
    return tuple(kind for kind in members if not (has_enum and kind is str))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    is_numpy = isinstance(value, numbers.Number) and type(value) not in (bool, int, float)
    return value.item() if is_numpy and hasattr(value, "item") else value


def _fits(value: Any, hint: Any) -> bool:
    return any(_fits_one(value, kind) for kind in _members(hint))


def _fits_one(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is list:
        of = typing.get_args(kind)
        return isinstance(value, list) and (not of or all(_fits(entry, of[0]) for entry in value))
    if origin is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < _INTEGERS)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _INTEGERS
    if origin is str:
        # No system takes one in a name or a path.
        return isinstance(value, str) and "\0" not in value
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return isinstance(value, (origin, str)) and value in [member.value for member in origin]
    return isinstance(value, origin)


def _is_in(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def _described(interval: str) -> str:
    low, high = interval[1:-1].split(",")
    if high.strip() != "inf":
        return f"in {interval}"
    return f"{'of at least' if interval[0] == '[' else 'above'} {low}"


def _require_choice(name: str, value: Any, valid: Collection[Any]) -> None:
    for entry in value if isinstance(value, list) else [value]:
        if entry not in valid:
            raise ValueError(f"{name} is {shown(value)}; expected one of {', '.join(map(repr, valid))}.")
