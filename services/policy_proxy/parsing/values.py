"""Owns JSON and Python values as a policy writes them: decoding that never fails otherwise than with a reason, and arguments as JSON text.

Refuses what JSON has no word for (NaN, infinities, half a surrogate pair) and what is nested so deeply that no tool means it.
"""

import ast
import json
from math import isfinite
from typing import Any, NoReturn, cast

MAX_DEPTH = 100
"""Levels; far below the interpreter's own limit, so that the verdict does not depend on how deep the caller's stack is."""


class NotJson(Exception):
    """Text that is no JSON value: what is wrong, and at which character."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.what = what
        self.at = at


def decode(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``at`` and the index after it. Raises `NotJson`."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        what = "the text ends before the JSON does" if error.pos >= len(text.rstrip()) else f"not JSON: {error.msg}"
        raise NotJson(what, error.pos) from error
    except RecursionError as error:
        raise NotJson("nested too deeply", at) from error
    except ValueError as error:
        raise NotJson(f"not JSON: {error}", at) from error
    if _too_deep(value):
        raise NotJson("nested too deeply", at)
    return value, end


def encode(value: Any) -> str:
    """JSON text of a value that was decoded here. Raises ValueError where it cannot be written as UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    text.encode()
    return text


def literal(text: str) -> Any:
    """A Python literal that JSON can express. Raises ValueError for any other text."""
    try:
        value = ast.literal_eval(text)
        if _too_deep(value):
            raise ValueError("nested too deeply")
        json.dumps(value, allow_nan=False)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no literal: {error}") from error
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def _too_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return False
    return True


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[Any, Any]", value).values())
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple | set) else []


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
