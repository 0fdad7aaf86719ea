"""Owns reading the conversation of a request: messages and tool schemas, into the form that chat templates take.

Text content, tool-call arguments as objects, ``developer`` as the system role that it is. Refuses roles, parts and calls that no
template could show, by the place they stand at.
"""

from collections.abc import Sequence
from typing import Any, cast

import orjson

from services.policy_proxy.chat.fields import Json, invalid

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def read_messages(value: Any) -> list[Json]:
    """Messages in template form. Raises `BadRequest`."""
    if not isinstance(value, list) or not value:
        raise invalid("messages", "a non-empty list is needed")
    return [read_message(message, f"messages[{index}]") for index, message in enumerate(cast("list[Any]", value))]


def read_message(value: Any, where: str) -> Json:
    """One message in template form. Raises `BadRequest` that names ``where``."""
    if not isinstance(value, dict):
        raise invalid(where, "an object is needed")
    message = cast("Json", value)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"one of {', '.join(sorted(ROLES))} is needed, not {role!r}")
    calls = message.get("tool_calls")
    read = {**message, "content": _text(message.get("content"), f"{where}.content", optional=role == "assistant")}
    if role == "developer":
        read["role"] = "system"
    if calls is None:
        read.pop("tool_calls", None)
    elif role != "assistant" or not isinstance(calls, list):
        raise invalid(f"{where}.tool_calls", "a list is needed, and only assistant messages have one")
    else:
        items = cast("list[Any]", calls)
        read["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(items)]
    return read


def read_tools(value: Any) -> Sequence[Json]:
    """The tool schemas as sent. Raises `BadRequest`."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise invalid("tools", "a list is needed")
    tools = cast("list[Any]", value)
    for index, tool in enumerate(tools):
        _check_tool(tool, f"tools[{index}]")
    return tools


def _check_tool(tool: Any, where: str) -> None:
    known = cast("Json", tool) if isinstance(tool, dict) else {}
    function: Any = known.get("function")
    if known.get("type", "function") != "function" or not isinstance(function, dict):
        raise invalid(where, 'a {"type": "function", "function": {"name": …}} object is needed')
    schema = cast("Json", function)
    if not isinstance(schema.get("name"), str) or not schema["name"]:
        raise invalid(where, "function.name is needed")
    if not isinstance(schema.get("parameters"), dict | None):
        raise invalid(f"{where}.function.parameters", "a JSON schema object is needed")
    if not isinstance(schema.get("strict"), bool | None):
        raise invalid(f"{where}.function.strict", "true or false is needed")


def _tool_call(value: Any, where: str) -> Json:
    function: Any = cast("Json", value).get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(cast("Json", function).get("name"), str):
        raise invalid(where, 'a {"id": …, "type": "function", "function": {"name": …, "arguments": …}} object is needed')
    known = cast("Json", function)
    arguments: Any = known.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            raise invalid(f"{where}.function.arguments", f"not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise invalid(f"{where}.function.arguments", "the JSON text of an object is needed")
    return {**cast("Json", value), "function": {**known, "arguments": arguments}}


def _text(value: Any, where: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if not isinstance(value, list):
        raise invalid(where, "a string is needed, or a list of text parts")
    parts = cast("list[Any]", value)
    texts = [cast("Json", part).get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(where, "only parts of type text are supported")
    return "".join(cast("list[str]", texts))
