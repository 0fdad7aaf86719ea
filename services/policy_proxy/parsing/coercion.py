"""Owns turning the text of an argument into a value of the type that the tool's schema asks for, as SGLang's qwen3_coder parser does.

What cannot be turned stays a string, so that the tool itself can say what it wanted. Any case of ``null`` is null.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, cast

from services.policy_proxy.parsing.parts import Json
from services.policy_proxy.parsing.values import NotJson, decode, literal

STRINGS = ("string", "str", "text", "varchar", "char", "enum")
INTEGERS = ("int", "uint", "long", "short", "unsigned")
NUMBERS = ("num", "float")
BOOLEANS = ("boolean", "bool", "binary")
CONTAINERS = ("object", "array", "arr")
CONTAINER_PREFIXES = ("dict", "list")
MAX_SCHEMA_DEPTH = 20
UNIONS = ("anyOf", "oneOf", "allOf")


def properties_of(tools: Sequence[Json], function: str) -> Json:
    """The schemas of a function's parameters, by name; empty where the function is not known."""
    for tool in tools:
        described = tool.get("function")
        if tool.get("type") != "function" or not isinstance(described, dict) or cast("Json", described).get("name") != function:
            continue
        parameters = cast("Json", described).get("parameters")
        if not isinstance(parameters, dict):
            return {}
        schema = cast("Json", parameters)
        properties = _properties(schema, MAX_SCHEMA_DEPTH)
        return properties if properties or "properties" in schema else schema
    return {}


def coerce(text: str, schema: Any) -> Any:
    """``text`` as a value of the schema's type. ``schema`` None: the parameter is not known, the text stays as it is."""
    if text.lower() == "null":
        return None
    kind = (type_of(schema) or "string").strip().lower()
    if kind in STRINGS:
        return text
    if kind.startswith(INTEGERS):
        return _integer(text)
    if kind.startswith(NUMBERS):
        return _number(text)
    if kind in BOOLEANS:
        return text.lower() == "true"
    return _structure(text, json_first=kind in CONTAINERS or kind.startswith(CONTAINER_PREFIXES))


def type_of(schema: Any, depth: int = MAX_SCHEMA_DEPTH) -> str | None:
    """The one JSON type that a schema stands for, "string" where several are possible; None where nothing says."""
    if not isinstance(schema, dict) or depth == 0:
        return None
    fields = cast("Json", schema)
    for infer in (_from_type, _from_alternatives, _from_enum, _from_conjunction):
        found = infer(fields, depth)
        if found is not None:
            return found
    if "properties" in fields:
        return "object"
    return "array" if "items" in fields else None


def _properties(schema: Any, depth: int) -> Json:
    if not isinstance(schema, dict) or depth == 0:
        return {}
    fields = cast("Json", schema)
    own = fields.get("properties")
    if isinstance(own, dict):
        return cast("Json", own)
    merged: Json = {}
    for keyword in UNIONS:
        branches = fields.get(keyword)
        for branch in cast("list[Any]", branches) if isinstance(branches, list) else []:
            merged = _properties(branch, depth - 1) | merged
    return merged


def _from_type(schema: Json, _: int) -> str | None:
    declared = schema.get("type")
    if isinstance(declared, str):
        return declared
    if isinstance(declared, list) and declared:
        return next((str(each) for each in cast("list[Any]", declared) if each != "null"), "string")
    return None


def _from_alternatives(schema: Json, depth: int) -> str | None:
    options = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(options, list):
        return None
    kinds = [kind for option in cast("list[Any]", options) if (kind := type_of(option, depth - 1))]
    distinct = set(kinds)
    if len(distinct) == 2 and "null" in distinct:
        return next(kind for kind in kinds if kind != "null")
    if "string" in distinct and len(distinct) > 1:
        return "string"
    return kinds[0] if kinds else None


def _from_enum(schema: Json, _: int) -> str | None:
    values = schema.get("enum")
    if not isinstance(values, list):
        return None
    names: dict[type[Any], str] = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    kinds = {names.get(cast("type[Any]", type(value)), "string") for value in cast("list[Any]", values)}
    return kinds.pop() if len(kinds) == 1 else "string"


def _from_conjunction(schema: Json, depth: int) -> str | None:
    parts = schema.get("allOf")
    if not isinstance(parts, list):
        return None
    kinds = [type_of(part, depth - 1) for part in cast("list[Any]", parts)]
    return next((kind for kind in kinds if kind and kind != "string"), "string")


def _integer(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    if not isfinite(number):
        return text
    whole = "." not in text and "e" not in text.lower() and number.is_integer()
    return int(number) if whole else number


def _structure(text: str, *, json_first: bool) -> Any:
    if json_first:
        try:
            value, end = decode(text, len(text) - len(text.lstrip()))
        except NotJson:
            pass
        else:
            if not text[end:].strip():
                return value
    try:
        return literal(text)
    except ValueError:
        return text
