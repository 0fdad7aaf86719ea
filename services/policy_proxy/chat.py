"""Owns the OpenAI chat-completions form: reading a request body strictly, and writing the answer.

Validated by hand on plain dicts: a body is about 100 kB of history, most of it seen before, and a schema library costs more than the
rest of the call. Refuses unknown and unsupported parameters by name, and sampling whose logprobs would not be those of the policy.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from services.common.errors import BadRequest
from services.common.ids import new_id
from services.policy_proxy.parsing import Said

Json = dict[str, Any]
MODEL_ID = "policy"
"""What ``GET /v1/models`` lists; the ``model`` of a request is echoed, because one proxy serves one policy."""
KNOWN = frozenset(
    [
        "model",
        "messages",
        "tools",
        "tool_choice",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "user",
        "metadata",
        "store",
        "chat_template_kwargs",
    ]
)
"""``user``, ``metadata`` and ``store`` are notes to OpenAI's platform and ask nothing of a model."""
NEUTRAL: Mapping[str, tuple[Any, str]] = {
    "stream": (False, "streaming is not supported"),
    "n": (1, "several requests can be sent instead"),
    "parallel_tool_calls": (True, "the policy cannot be kept from making several calls"),
    "frequency_penalty": (0, "captured logprobs would not be those of the policy that is trained"),
    "presence_penalty": (0, "captured logprobs would not be those of the policy that is trained"),
    "logit_bias": ({}, "captured logprobs would not be those of the policy that is trained"),
    "response_format": ({"type": "text"}, "the policy's output is not constrained"),
    "logprobs": (False, "logprobs are recorded in the session, see /v1/sessions/{id}/calls"),
    "top_logprobs": (0, "only the logprobs of the sampled tokens are known"),
    "service_tier": ("auto", "there are no tiers"),
    "modalities": (["text"], "there is only text"),
}
"""Parameters that clients send although they mean the default: the one value that can be honoured, and why no other can."""
ROLES = frozenset({"system", "user", "assistant", "tool"})
RESERVED_KWARGS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request. ``messages`` are in template form: text content, tool-call arguments as objects."""

    messages: Sequence[Json]
    tools: Sequence[Json] = ()
    """Empty where there are none or ``tool_choice`` is "none": the policy then neither sees nor calls tools."""
    model: str = MODEL_ID
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation and the assistant message that is to be recorded as if the policy had said it."""

    request: ChatRequest
    message: Json
    """As it was sent."""
    template_message: Json


def parse_body(raw: bytes) -> Json:
    """The JSON object in ``raw``. Raises `BadRequest`."""
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return cast("Json", body)


def read_request(body: Json) -> ChatRequest:
    """Checks every parameter. Raises `BadRequest` that names the one at fault."""
    _refuse_unsupported(body)
    max_tokens = _integer(body, "max_completion_tokens", 1)
    if max_tokens is None:
        max_tokens = _integer(body, "max_tokens", 1)
    elif body.get("max_tokens") is not None:
        raise _invalid("max_tokens", "give max_tokens or max_completion_tokens, not both")
    model = body.get("model")
    if not isinstance(model, str):
        raise _invalid("model", "a string is needed, such as " + MODEL_ID)
    tools = read_tools(body.get("tools"))
    return ChatRequest(
        messages=read_messages(body.get("messages")),
        tools=() if body.get("tool_choice") == "none" else tools,
        model=model,
        temperature=_number(body, "temperature", 1.0),
        top_p=_top_p(body),
        max_tokens=max_tokens,
        seed=_integer(body, "seed", 0),
        template_kwargs=_template_kwargs(body.get("chat_template_kwargs")),
    )


def read_demonstration(body: Json) -> Demonstration:
    """Checks ``{"messages", "tools", "message"}``. Raises `BadRequest`."""
    if unknown := sorted(body.keys() - {"messages", "tools", "message"}):
        raise BadRequest(f"{unknown[0]}: not known here; remove it", code="unsupported_parameter", param=unknown[0])
    request = ChatRequest(messages=read_messages(body.get("messages")), tools=read_tools(body.get("tools")))
    message: Any = body.get("message")
    spoken = read_message(message, "message")
    if spoken["role"] != "assistant":
        raise _invalid("message.role", "only an assistant message can be demonstrated")
    return Demonstration(request, message, spoken)


def read_messages(value: Any) -> list[Json]:
    """Messages in template form. Raises `BadRequest`."""
    if not isinstance(value, list) or not value:
        raise _invalid("messages", "a non-empty list is needed")
    return [read_message(message, f"messages[{index}]") for index, message in enumerate(cast("list[Any]", value))]


def read_message(value: Any, where: str) -> Json:
    """One message in template form. Raises `BadRequest` that names ``where``."""
    if not isinstance(value, dict):
        raise _invalid(where, "an object is needed")
    message = cast("Json", value)
    role = message.get("role")
    if role not in ROLES:
        raise _invalid(f"{where}.role", f"one of {', '.join(sorted(ROLES))} is needed, not {role!r}")
    calls = message.get("tool_calls")
    read = {**message, "content": _text(message.get("content"), f"{where}.content", optional=role == "assistant")}
    if calls is None:
        read.pop("tool_calls", None)
    elif role != "assistant" or not isinstance(calls, list):
        raise _invalid(f"{where}.tool_calls", "a list is needed, and only assistant messages have one")
    else:
        items = cast("list[Any]", calls)
        read["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(items)]
    return read


def read_tools(value: Any) -> Sequence[Json]:
    """The tool schemas as sent. Raises `BadRequest`."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _invalid("tools", "a list is needed")
    tools = cast("list[Any]", value)
    for index, tool in enumerate(tools):
        schema: Any = cast("Json", tool).get("function") if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(cast("Json", schema).get("name"), str):
            raise _invalid(f"tools[{index}]", 'a {"type": "function", "function": {"name": …}} object is needed')
    return tools


def assistant_message(said: Said) -> Json:
    """What the policy said as an OpenAI message."""
    message: Json = {"role": "assistant", "content": said.content if said.content or not said.tool_calls else None}
    if said.reasoning is not None:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [
            {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.tool_calls
        ]
    return message


def completion(call_id: str, model: str, message: Json, finish_reason: str, usage: tuple[int, int]) -> Json:
    """The OpenAI answer; ``usage`` is (prompt tokens, completion tokens)."""
    n_prompt, n_output = usage
    return {
        "id": call_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_output, "total_tokens": n_prompt + n_output},
    }


def _refuse_unsupported(body: Json) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    unknown = sorted(given.keys() - KNOWN - NEUTRAL.keys())
    if unknown:
        raise BadRequest(f"{unknown[0]}: not supported here; remove it", code="unsupported_parameter", param=unknown[0])
    for name, (neutral, why) in NEUTRAL.items():
        if given.get(name, neutral) != neutral:
            raise BadRequest(
                f"{name}: only {orjson.dumps(neutral).decode()} is supported, because {why}", code="unsupported_parameter", param=name
            )
    if given.get("tool_choice", "auto") not in ("auto", "none"):
        raise BadRequest(
            'tool_choice: only "auto" and "none" can be honoured, the policy cannot be forced',
            code="unsupported_parameter",
            param="tool_choice",
        )


def _top_p(body: Json) -> float:
    top_p = _number(body, "top_p", 1.0)
    if top_p != 1.0:
        raise BadRequest(
            "top_p: must be 1, because captured logprobs would not be those of the policy that is trained",
            code="unsupported_parameter",
            param="top_p",
        )
    return top_p


def _template_kwargs(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid("chat_template_kwargs", "an object is needed")
    kwargs = cast("Json", value)
    if taken := sorted(kwargs.keys() & RESERVED_KWARGS):
        raise _invalid(f"chat_template_kwargs.{taken[0]}", "the proxy sets this one")
    return kwargs


def _tool_call(value: Any, where: str) -> Json:
    function: Any = cast("Json", value).get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(cast("Json", function).get("name"), str):
        raise _invalid(where, 'a {"id": …, "type": "function", "function": {"name": …, "arguments": …}} object is needed')
    known = cast("Json", function)
    arguments: Any = known.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            raise _invalid(f"{where}.function.arguments", f"not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise _invalid(f"{where}.function.arguments", "the JSON text of an object is needed")
    return {**cast("Json", value), "function": {**known, "arguments": arguments}}


def _text(value: Any, where: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if not isinstance(value, list):
        raise _invalid(where, "a string is needed, or a list of text parts")
    parts = cast("list[Any]", value)
    texts = [cast("Json", part).get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _invalid(where, "only parts of type text are supported")
    return "".join(cast("list[str]", texts))


def _number(body: Json, name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _invalid(name, "a number of at least 0 is needed")
    return float(value)


def _integer(body: Json, name: str, at_least: int) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < at_least):
        raise _invalid(name, f"an integer of at least {at_least} is needed")
    return value


def _invalid(param: str, remedy: str) -> BadRequest:
    return BadRequest(f"{param}: {remedy}", code="invalid_value", param=param)
