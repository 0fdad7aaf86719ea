"""Owns how the value of a tool call becomes text, equal to upstream tau2 (`Environment.to_json_str`) to the character.

Numbers directly inside containers become strings there, numbers inside models stay numbers; both are part of what agents see.
"""

import json
from datetime import date
from typing import Any, cast

from pydantic import BaseModel


def to_text(value: Any) -> str:
    """The text of a tool result. Strings are sent as they are. Raises ValueError for a type that tau2 does not know."""
    return value if isinstance(value, str) else json.dumps(_plain(value), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, date):
        return value.isoformat()
    raise ValueError(f"a tool returned a value of type {type(value).__name__}, which has no text form")
