"""Owns reading single fields of a JSON body by hand: what is wrong is said with the field's name and the remedy."""

from collections.abc import Mapping
from typing import Any

from services.common.errors import BadRequest

Json = dict[str, Any]


def invalid(param: str, remedy: str) -> BadRequest:
    """The error of a value that can never be right."""
    return BadRequest(f"{param}: {remedy}", code="invalid_value", param=param)


def unsupported(param: str, why: str) -> BadRequest:
    """The error of a parameter, or a value of one, that is not to be had here."""
    return BadRequest(f"{param}: {why}", code="unsupported_parameter", param=param)


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number in [``low``, ``high``]; ``default`` where it is left out or null. Raises `BadRequest`."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise invalid(name, f"a number of at least {low:g} and at most {high:g} is needed")
    return float(value)


def integer(body: Mapping[str, Any], name: str, at_least: int, at_most: int = 2**31 - 1) -> int | None:
    """An integer in that range, or None where it is left out or null. Raises `BadRequest`."""
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most):
        bound = f" and at most {at_most}" if at_most < 2**31 - 1 else ""
        raise invalid(name, f"an integer of at least {at_least}{bound} is needed")
    return value


def boolean(body: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean; ``default`` where it is left out or null. Raises `BadRequest`."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(name, "true or false is needed")
    return value
