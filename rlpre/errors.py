"""The error that users see, and the checks that raise it."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral
from typing import TypeVar

T = TypeVar("T")


class RlpreError(ValueError):
    """Bad input: one sentence that says what was wrong, where, and what to do. Scripts exit with code 2."""


def lookup(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Returns ``known[name]``; ``kind`` says what it is, for the message ("encoder", "objective", ...).

    Raises:
        RlpreError: if the name is unknown; the message gives the nearest known name and lists the others.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = sorted(known)
    shown = ", ".join(listed[:12]) + (f", … ({len(listed)} in all)" if len(listed) > 12 else "")
    raise RlpreError(f"unknown {kind} {name!r}: {hint}known: {shown}")


AXIS = "gymnasium.wrappers.GrayscaleObservation(env, keep_dim=True) adds an axis of channels"


def whole(**numbers: object) -> None:
    """Checks that numbers are None or whole ones, by their type.

    Raises:
        RlpreError: naming the first that is not.
    """
    for name, value in numbers.items():
        if value is not None and not isinstance(value, Integral):
            raise RlpreError(f"{name} is {value!r}: give a whole number, as an int")


def at_least(settings: object, **least: float) -> None:
    """Checks that attributes of ``settings`` are None or not below these values, and whole where they are declared so.

    Raises:
        RlpreError: naming the first that is smaller, or not whole.
    """
    kinds = {field.name: field.type for field in fields(settings)} if is_dataclass(settings) else {}
    for name, smallest in least.items():
        value = getattr(settings, name)
        if kinds.get(name) in (int, int | None):
            whole(**{name: value})
        if value is not None and not value >= smallest:
            raise RlpreError(f"{name} is {value}: it must be at least {smallest}")
