"""Owns OpenAI's Responses API as a form of chat completions: requests.

An own translation, because litellm's adapter cannot be used as a pure function and costs seconds to import. Refuses unknown parameters by
name, everything that needs a memory of earlier responses (``previous_response_id``, ``conversation``), built-in tools, and
``reasoning`` (whether the policy thinks is its chat template's business).
"""

from typing import Any, cast

from services.policy_proxy.chat.fields import Json, integer, invalid, unsupported
from services.policy_proxy.dialects.base import EXTENSIONS, only, refuse_unknown

NAMES = {"max_completion_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}
SAME = EXTENSIONS | {"model", "temperature", "top_p", "stream", "parallel_tool_calls", "metadata", "user", "store"}
"""Parameters that mean the same in chat completions; the last three are notes to OpenAI's platform."""
NEUTRAL = frozenset({"truncation", "service_tier", "background", "stream_options", "reasoning", "text", "include"})
"""Parameters of which one value can be honoured, or some parts."""
OWN = frozenset({"input", "instructions", "max_output_tokens", "tools", "tool_choice", "top_logprobs"})
KNOWN = SAME | NEUTRAL | OWN | {"safety_identifier", "prompt_cache_key"}
LOGPROBS = "message.output_text.logprobs"
TEXT_PARTS = ("input_text", "output_text", "text")


def to_chat(body: Json) -> Json:
    """A Responses body as a chat-completions body. Raises `BadRequest`."""
    refuse_unknown(body, KNOWN)
    only(body, "truncation", ("disabled",), "a prompt that is too long is an error here")
    only(body, "service_tier", ("auto", "default"), "there are no tiers")
    only(body, "background", (False,), "a call lasts as long as its request")
    if any(_object(body, "reasoning").values()):
        raise unsupported("reasoning", "the chat template decides whether the policy thinks; use chat_template_kwargs")
    if any(_object(body, "stream_options").values()):
        raise unsupported("stream_options", "not supported here; remove it")
    chat: Json = {name: value for name, value in body.items() if name in SAME}
    chat["max_completion_tokens"] = integer(body, "max_output_tokens", 1)
    instructions = body.get("instructions")
    system: list[Json] = [] if instructions is None else [{"role": "system", "content": instructions}]
    chat["messages"] = system + _messages(body.get("input"))
    if body.get("tools") is not None:
        chat["tools"] = _tools(body["tools"])
    chat["tool_choice"] = _tool_choice(body.get("tool_choice"))
    chat["response_format"] = _response_format(_object(body, "text"))
    return chat | _logprobs(body)


def _object(body: Json, name: str) -> Json:
    value = body.get(name)
    if not isinstance(value, dict | None):
        raise invalid(name, "an object is needed")
    return cast("Json", value or {})


def _messages(value: Any) -> list[Json]:
    """The items of ``input``; what the assistant thought, said and called next to each other is one message."""
    items: Any = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise invalid("input", "a string or a non-empty list is needed")
    messages: list[Json] = []
    for index, item in enumerate(cast("list[Any]", items)):
        if not isinstance(item, dict):
            raise invalid(f"input[{index}]", "an object is needed")
        message = _message(cast("Json", item), f"input[{index}]")
        if messages and _continues(messages[-1], message):
            _merge(messages[-1], message)
        else:
            messages.append(message)
    return messages


def _message(item: Json, where: str) -> Json:
    match item.get("type", "message"):
        case "message":
            return {"role": item.get("role"), "content": _text(item.get("content"), f"{where}.content")}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _text(item.get("output"), f"{where}.output")}
        case "reasoning":
            return {"role": "assistant", "reasoning_content": _reasoning(item, where)}
        case kind:
            raise unsupported(where, f"items of type {kind!r} are not supported")


def _continues(last: Json, message: Json) -> bool:
    """Whether an item belongs to the assistant message before it: in a message, thought comes before text and text before calls."""
    if last["role"] != "assistant" or message["role"] != "assistant":
        return False
    if "reasoning_content" in message:
        return False
    return "tool_calls" in message or not (last.keys() & {"content", "tool_calls"})


def _merge(last: Json, message: Json) -> None:
    calls: list[Json] = last.get("tool_calls", []) + message.get("tool_calls", [])
    last.update(message)
    if calls:
        last["tool_calls"] = calls


def _reasoning(item: Json, where: str) -> str:
    content: Any = item.get("content") or item.get("summary")
    if not content or not isinstance(content, list):
        raise invalid(where, "a reasoning item needs the content that it came with")
    texts = [cast("Json", part).get("text") if isinstance(part, dict) else None for part in cast("list[Any]", content)]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(f"{where}.content", "only parts with a text are supported")
    return "".join(cast("list[str]", texts))


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    parts = cast("list[Any]", value) if isinstance(value, list) else [None]
    texts: list[str] = []
    for part in parts:
        known = cast("Json", part) if isinstance(part, dict) else {}
        if known.get("type") not in TEXT_PARTS or not isinstance(known.get("text"), str):
            raise invalid(where, "a string is needed, or a list of input_text or output_text parts")
        texts.append(known["text"])
    return "".join(texts)


def _tools(value: Any) -> list[Json]:
    if not isinstance(value, list):
        raise invalid("tools", "a list is needed")
    tools: list[Json] = []
    for index, item in enumerate(cast("list[Any]", value)):
        tool = cast("Json", item) if isinstance(item, dict) else {}
        if tool.get("type") != "function":
            raise unsupported(f"tools[{index}]", f"tools of type {tool.get('type')!r} run at OpenAI; only functions are supported")
        function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
        tools.append({"type": "function", "function": function})
    return tools


def _tool_choice(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    choice = cast("Json", value)
    if choice.get("type") != "function":
        raise unsupported("tool_choice", f"choices of type {choice.get('type')!r} are not supported")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(text: Json) -> Json | None:
    if text.get("verbosity") is not None:
        raise unsupported("text.verbosity", "the policy cannot be asked for it; remove it")
    given: Any = text.get("format")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise invalid("text.format", "an object is needed")
    form = cast("Json", given)
    return form if form.get("type") != "json_schema" else {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}


def _logprobs(body: Json) -> Json:
    include: Any = body.get("include") or []
    wanted = [name for name in cast("list[Any]", include) if name != LOGPROBS] if isinstance(include, list) else [include]
    if wanted:
        raise unsupported("include", f"{wanted[0]!r} is not supported, only {LOGPROBS!r} is")
    if not include:
        return {"top_logprobs": body.get("top_logprobs")}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs")}
