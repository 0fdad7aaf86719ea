"""Owns reading a chat-completions body strictly.

Validated by hand on plain dicts: a body is about 100 kB of history, most of it seen before, and a schema library costs more than the
rest of the call. Refuses unknown and unsupported parameters by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import orjson

from services.common.errors import BadRequest
from services.policy_proxy.chat.fields import Json, boolean, integer, invalid, number, unsupported
from services.policy_proxy.chat.messages import read_message, read_messages, read_tools
from services.policy_proxy.chat.params import Shaping, read_shaping, read_stops

MODEL_ID = "policy"
"""What ``GET /v1/models`` lists; the ``model`` of a request is echoed, because one proxy serves one policy."""
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
KNOWN = frozenset(
    [
        "model",
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "chat_template_kwargs",
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
    ]
)
"""The last five are notes to OpenAI's platform and ask nothing of a model."""
NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "service_tier": (("auto", "default"), "there are no tiers"),
    "modalities": ((["text"],), "there is only text"),
}
"""Parameters that clients send although they mean the default: the values that can be honoured, and why no other can."""
RESERVED_KWARGS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
NO_SHAPING = Shaping({})


class ChatRequest(msgspec.Struct, frozen=True):
    """A checked request. ``messages`` are in template form: text content, tool-call arguments as objects."""

    messages: Sequence[Json]
    tools: Sequence[Json] = ()
    """Empty where there are none or ``tool_choice`` is "none": the policy then neither sees nor calls tools."""
    model: str = MODEL_ID
    temperature: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    n_top: int | None = None
    """Likeliest tokens to report with each token; None where no logprobs are asked for."""
    parallel_tool_calls: bool = True
    stream: bool = False
    include_usage: bool = False
    shaping: Shaping = NO_SHAPING
    template_kwargs: Mapping[str, Any] = msgspec.field(default_factory=dict[str, Any])


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


def read_request(body: Json, tool_call_parser: str = "qwen25") -> ChatRequest:
    """Checks every parameter. Raises `BadRequest` that names the one at fault."""
    _refuse_unsupported(body)
    model = body.get("model")
    if not isinstance(model, str):
        raise invalid("model", "a string is needed, such as " + MODEL_ID)
    tools = read_tools(body.get("tools"))
    shown = () if body.get("tool_choice") == "none" else tools
    stream = boolean(body, "stream", False)
    return ChatRequest(
        messages=read_messages(body.get("messages")),
        tools=shown,
        model=model,
        temperature=number(body, "temperature", 1.0, 0.0, 100.0),
        max_tokens=_max_tokens(body),
        seed=integer(body, "seed", 0),
        stop=read_stops(body.get("stop")),
        n=integer(body, "n", 1, MAX_CHOICES) or 1,
        n_top=_n_top(body),
        parallel_tool_calls=boolean(body, "parallel_tool_calls", True),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        shaping=read_shaping(body, shown, tool_call_parser),
        template_kwargs=_template_kwargs(body.get("chat_template_kwargs")),
    )


def read_demonstration(body: Json) -> Demonstration:
    """Checks ``{"messages", "tools", "message"}``. Raises `BadRequest`."""
    if unknown := sorted(body.keys() - {"messages", "tools", "message"}):
        raise unsupported(unknown[0], "not known here; remove it")
    request = ChatRequest(messages=read_messages(body.get("messages")), tools=read_tools(body.get("tools")))
    message: Any = body.get("message")
    spoken = read_message(message, "message")
    if spoken["role"] != "assistant":
        raise invalid("message.role", "only an assistant message can be demonstrated")
    return Demonstration(request, message, spoken)


def refuse_untrue(request: ChatRequest) -> None:
    """Raises `BadRequest` where the logprobs that are captured would not be those of the policy that is trained on them."""
    if name := request.shaping.untrue:
        raise unsupported(
            name,
            "captured logprobs would not be those of the policy that is trained; leave it out, "
            "or set services.policy_proxy.untrue_logprobs to allow where nobody trains on them",
        )


def _refuse_unsupported(body: Json) -> None:
    unknown = [name for name, value in body.items() if value is not None and name not in KNOWN and name not in NEUTRAL]
    if unknown:
        raise unsupported(min(unknown), "not supported here; remove it")
    for name, (neutral, why) in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise unsupported(name, f"only {orjson.dumps(neutral[0]).decode()} is supported, because {why}")


def _max_tokens(body: Json) -> int | None:
    wanted = integer(body, "max_completion_tokens", 1)
    older = integer(body, "max_tokens", 1)
    if wanted is not None and older is not None:
        raise invalid("max_tokens", "give max_tokens or max_completion_tokens, not both")
    return older if wanted is None else wanted


def _n_top(body: Json) -> int | None:
    wanted = boolean(body, "logprobs", False)
    n_top = integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    if n_top and not wanted:
        raise invalid("top_logprobs", "logprobs must be true beside it")
    return n_top if wanted else None


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict) or not stream:
        raise invalid("stream_options", "an object is needed, and only beside stream: true")
    options = cast("Json", value)
    if unknown := sorted(name for name, set_to in options.items() if name != "include_usage" and set_to not in (None, False)):
        raise unsupported(f"stream_options.{unknown[0]}", "not supported here; remove it")
    return boolean(options, "include_usage", False)


def _template_kwargs(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("chat_template_kwargs", "an object is needed")
    kwargs = cast("Json", value)
    if taken := sorted(kwargs.keys() & RESERVED_KWARGS):
        raise invalid(f"chat_template_kwargs.{taken[0]}", "the proxy sets this one")
    return kwargs
