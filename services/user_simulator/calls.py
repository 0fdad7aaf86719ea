"""Owns reading tool calls that somebody wrote into a sentence, such as ``grant_app_permission(app_name='messaging', permission='sms')``.

Understood are Python's and JSON's literals, a JSON object after the name, and bare words as tau2 prints actions. Refuses code: nothing is
evaluated but literals.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

Json = dict[str, Any]

MAX_CALLS = 8
"""Of one message; nobody asks for more, and a text full of parentheses must not cost more."""
MAX_ENDS = 24
"""Closing parentheses that are tried as the end of one call."""

_NAME = re.compile(r"\b[a-z][a-z0-9_]*\b")
_NOT_ASKED = re.compile(
    r"\b(?:(?:don['’]t|do not)(?! forget)|without|instead of|no need to|rather than|you (?:already )?(?:ran|have run|did))\b[^.,;:!?\n]*$",
    re.IGNORECASE,
)
_BARE = re.compile(r"(?:^|,)\s*([A-Za-z_]\w*)\s*=\s*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def written_calls(text: str, tools: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """The calls of known tools that ``text`` names, in order: all that have arguments or parentheses, else the first bare name alone.

    ``tools``: name -> JSON schema of the parameters, by which arguments without a name get one and values of the wrong type are turned
    into text.
    """
    explicit: list[tuple[str, Json]] = []
    bare: list[tuple[str, Json]] = []
    for match in _NAME.finditer(text):
        if match[0] not in tools or len(explicit) >= MAX_CALLS or _NOT_ASKED.search(text[: match.start()]):
            continue
        schema = tools[match[0]]
        arguments = _arguments(text[match.end() :].lstrip(" `"), schema)
        if arguments is None:
            bare.append((match[0], {}))
        else:
            explicit.append((match[0], _fitted(arguments, schema)))
    return explicit or bare[:1]


def _arguments(rest: str, schema: Json) -> Json | None:
    """The arguments at the start of ``rest``; None where there are none."""
    if rest.startswith("("):
        ends = [match.start() for _, match in zip(range(MAX_ENDS), re.finditer(r"\)", rest), strict=False)]
        read = next((found for end in ends if (found := _literals(rest[1:end], schema)) is not None), None)
        return read if read is not None else _bare_words(rest[1 : _closing(rest)])
    return _json_object(rest) if rest.startswith("{") else None


def _closing(text: str) -> int:
    """Where the parenthesis that ``text`` begins with is closed; its end where it is not."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _json_object(text: str) -> Json | None:
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return cast("Json", value) if isinstance(value, dict) else None


def _literals(text: str, schema: Json) -> Json | None:
    """``text`` as the inside of a Python call with literal arguments; None where it is not one."""
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        named = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg}
        given = [_value(argument) for argument in call.args]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(given) == 1 and isinstance(given[0], dict) and not named:
        return cast("Json", given[0])
    return dict(zip(schema.get("properties", {}), given, strict=False)) | named


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    return ast.literal_eval(node)


def _bare_words(text: str) -> Json:
    """``card_type=Gold Card, annual_income=1000`` with values as they stand."""
    starts = list(_BARE.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {match[1]: _bare_value(text[match.end() : end].strip()) for match, end in zip(starts, ends, strict=False)}


def _bare_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _fitted(arguments: Json, schema: Json) -> Json:
    return dict(_fitted_items(arguments, schema.get("properties", {})))


def _fitted_items(arguments: Json, properties: Json) -> Iterator[tuple[str, Any]]:
    for name, value in arguments.items():
        is_text = properties.get(name, {}).get("type") == "string" and value is not None and not isinstance(value, str)
        yield name, json.dumps(value, default=str) if is_text else value
