"""Owns writing an answer in OpenAI's form: messages, choices, logprobs, the completion, and the parts that a stream of it is made of.

Fields that OpenAI does not have: ``reasoning_content`` and ``matched_stop`` (as SGLang's own front names them) and
``malformed_tool_call`` beside the message that contains one, so that an agent loop can say what was wrong.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from services.common.ids import new_id
from services.policy_proxy.chat.fields import Json
from services.policy_proxy.parsing import Said

LOWEST_LOGPROB = -9999.0
"""What OpenAI writes for a token without probability."""
TokenBytes = Callable[[int], bytes]
"""The bytes a token stands for; they need not be whole characters."""


class Part(msgspec.Struct, frozen=True):
    """The next piece of a choice: an OpenAI ``delta``, and the logprobs that have come since the part before."""

    choice: int
    delta: Json
    logprobs: Sequence[Json] = ()


class Usage(msgspec.Struct, frozen=True):
    """Tokens. ``cached``: those of the prompt that the server did not have to compute."""

    prompt: int
    completion: int
    cached: int = 0


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


def choice(index: int, message: Json, finish_reason: str, logprobs: list[Json] | None = None) -> Json:
    """One choice of a completion."""
    shown = None if logprobs is None else {"content": logprobs, "refusal": None}
    return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": shown}


def completion(call_id: str, model: str, choices: list[Json], usage: Usage) -> Json:
    """The OpenAI answer."""
    return {
        "id": call_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage_json(usage),
    }


def usage_json(usage: Usage) -> Json:
    """The ``usage`` of an answer."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def token_logprobs(
    ids: Sequence[int], logprobs: Sequence[float], top: Sequence[Sequence[tuple[float, int]]] | None, bytes_of: TokenBytes
) -> list[Json]:
    """OpenAI's entry for each token; ``top``: (logprob, id) of the likeliest tokens, likeliest first."""
    entries: list[Json] = []
    for index, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        likeliest = top[index] if top is not None else ()
        entry = _token(bytes_of(token), logprob)
        entry["top_logprobs"] = [_token(bytes_of(other), other_logprob) for other_logprob, other in likeliest]
        entries.append(entry)
    return entries


def parts_of(response: Json) -> list[Part]:
    """A whole answer as the parts of a stream."""
    parts: list[Part] = []
    for chosen in response["choices"]:
        parts += message_parts(chosen["index"], chosen["message"])
        logprobs = chosen["logprobs"]
        if logprobs is not None and logprobs["content"]:
            parts.append(Part(chosen["index"], {}, logprobs["content"]))
    return parts


def message_parts(index: int, message: Json) -> list[Part]:
    """A whole message as parts."""
    parts = [Part(index, {name: message[name]}) for name in ("reasoning_content", "content") if message.get(name)]
    return parts + call_parts(index, message)


def call_parts(index: int, message: Json) -> list[Part]:
    """The tool calls of a message as parts, one a call."""
    return [Part(index, {"tool_calls": [{"index": number, **call}]}) for number, call in enumerate(calls_in(message))]


def calls_in(message: Json) -> list[Json]:
    """The tool calls of a message, or of a delta."""
    return message.get("tool_calls") or []


def _token(data: bytes, logprob: float) -> dict[str, Any]:
    # A server may say -inf of a token that cannot be drawn; JSON has no such number.
    return {"token": data.decode(errors="replace"), "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(data)}
