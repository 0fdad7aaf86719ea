"""Owns Anthropic's Messages API as a form of chat completions: requests.

An own translation, because litellm's adapter cannot be used as a pure function and costs seconds to import. Refuses unknown parameters by
name, images, documents, server tools and ``thinking`` (whether the policy thinks is its chat template's business).
"""

from typing import Any, cast

import orjson

from services.policy_proxy.chat.fields import Json, integer, invalid, unsupported
from services.policy_proxy.dialects.base import EXTENSIONS, only, refuse_unknown

NAMES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences", "parallel_tool_calls": "tool_choice"}
SAME = EXTENSIONS | {"model", "temperature", "top_p", "stream"}
"""Parameters that mean the same in chat completions."""
KNOWN = SAME | {"system", "messages", "max_tokens", "stop_sequences", "tools", "tool_choice", "thinking", "service_tier", "metadata"}
TOOL_ERROR = "Error: "
"""What stands before the result of a tool that failed: chat completions have no flag for it."""


def to_chat(body: Json) -> Json:
    """A Messages body as a chat-completions body. Raises `BadRequest`."""
    refuse_unknown(body, KNOWN)
    only(body, "service_tier", ("auto", "standard_only"), "there are no tiers")
    if body.get("thinking") is not None:
        raise unsupported("thinking", "the chat template decides whether the policy thinks; use chat_template_kwargs")
    chat: Json = {name: value for name, value in body.items() if name in SAME}
    chat["max_completion_tokens"] = _max_tokens(body)
    chat["stop"] = body.get("stop_sequences")
    chat["messages"] = _system(body.get("system")) + _messages(body.get("messages"))
    if body.get("tools") is not None:
        chat["tools"] = _tools(body["tools"])
    return chat | _tool_choice(body.get("tool_choice"))


def to_count(body: Json) -> Json:
    """A count_tokens body, which has no ``max_tokens``, likewise."""
    return to_chat(body | {"max_tokens": 1})


def _max_tokens(body: Json) -> int:
    value = integer(body, "max_tokens", 1)
    if value is None:
        raise invalid("max_tokens", "an integer of at least 1 is needed")
    return value


def _system(value: Any) -> list[Json]:
    if value is None or value == []:
        return []
    return [{"role": "system", "content": value if isinstance(value, str) else _texts(value, "system")}]


def _messages(value: Any) -> list[Json]:
    if not isinstance(value, list) or not value:
        raise invalid("messages", "a non-empty list is needed")
    read: list[Json] = []
    for index, item in enumerate(cast("list[Any]", value)):
        where = f"messages[{index}]"
        message = cast("Json", item) if isinstance(item, dict) else {}
        content = message.get("content")
        blocks: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise invalid(f"{where}.content", "a string or a list of blocks is needed")
        match message.get("role"):
            case "user":
                read += _user(cast("list[Any]", blocks), where)
            case "assistant":
                read.append(_assistant(cast("list[Any]", blocks), where))
            case role:
                raise invalid(f"{where}.role", f'"user" or "assistant" is needed, not {role!r}')
    return read


def _user(blocks: list[Any], where: str) -> list[Json]:
    """A user message: the results of tools first, each a message of its own, then what was said."""
    results: list[Json] = []
    texts: list[Any] = []
    for index, block in enumerate(blocks):
        if isinstance(block, dict) and cast("Json", block).get("type") == "tool_result":
            results.append(_tool_result(cast("Json", block), f"{where}.content[{index}]"))
        else:
            texts.append(block)
    return results + ([{"role": "user", "content": _texts(texts, f"{where}.content")}] if texts or not results else [])


def _tool_result(block: Json, where: str) -> Json:
    content = block.get("content")
    text = content if isinstance(content, str) else _texts(content or [], f"{where}.content")
    failed = TOOL_ERROR if block.get("is_error") else ""
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": failed + text}


def _assistant(blocks: list[Any], where: str) -> Json:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Json] = []
    for index, item in enumerate(blocks):
        block = cast("Json", item) if isinstance(item, dict) else {}
        match block.get("type"), block.get("text"), block.get("thinking"):
            case "text", str(text), _:
                texts.append(text)
            case "thinking", _, str(thought):
                thoughts.append(thought)
            case "tool_use", _, _ if isinstance(block.get("input"), dict):
                function = {"name": block.get("name"), "arguments": orjson.dumps(block["input"]).decode()}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case kind, _, _:
                raise invalid(f"{where}.content[{index}]", f"a text, thinking or tool_use block is needed, not {kind!r}")
    message: Json = {"role": "assistant", "content": "".join(texts) or None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _texts(value: Any, where: str) -> str:
    blocks = cast("list[Any]", value) if isinstance(value, list) else [None]
    texts = [cast("Json", block).get("text") if isinstance(block, dict) else None for block in blocks]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(where, "only text blocks are supported")
    return "".join(cast("list[str]", texts))


def _tools(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise invalid("tools", "a list is needed")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(cast("list[Any]", value))]


def _tool(value: Any, where: str) -> Json:
    tool = cast("Json", value) if isinstance(value, dict) else {}
    if tool.get("type", "custom") not in ("custom", None):
        raise unsupported(where, f"tools of type {tool['type']!r} run at Anthropic; only custom tools are supported")
    if not isinstance(tool.get("name"), str) or not isinstance(tool.get("input_schema"), dict):
        raise invalid(where, 'a {"name": …, "input_schema": {…}} object is needed')
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(value: Any) -> Json:
    if value is None:
        return {}
    choice = cast("Json", value) if isinstance(value, dict) else {}
    chat: Json = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    match choice.get("type"):
        case "auto" | "none" as kind:
            return chat | {"tool_choice": kind}
        case "any":
            return chat | {"tool_choice": "required"}
        case "tool":
            return chat | {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
        case _:
            raise invalid("tool_choice", 'a type of "auto", "any", "tool" or "none" is needed')
