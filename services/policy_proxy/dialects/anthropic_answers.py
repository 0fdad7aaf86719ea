"""Owns Anthropic's Messages API as a form of chat completions: answers, streams and errors."""

from collections.abc import Mapping

import orjson

from services.common.errors import ServiceError
from services.policy_proxy.chat.answer import Part, calls_in
from services.policy_proxy.chat.fields import Json
from services.policy_proxy.dialects import anthropic_messages
from services.policy_proxy.dialects.base import Dialect
from services.policy_proxy.sse import data

STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def message(completion: Json, body: Json) -> Json:
    """A chat completion as a Messages answer."""
    choice = completion["choices"][0]
    said = choice["message"]
    content: list[Json] = []
    if said.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": said["reasoning_content"], "signature": ""})
    if said.get("content"):
        content.append({"type": "text", "text": said["content"]})
    content += [
        {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": orjson.loads(call["function"]["arguments"])}
        for call in calls_in(said)
    ]
    return _frame(completion["id"], body["model"]) | {"content": content, "usage": _usage(completion["usage"])} | _ending(choice)


def error(failed: ServiceError) -> Json:
    """Anthropic's error object, with our code and parameter beside its own fields."""
    kind = ERROR_TYPES.get(failed.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": failed.detail, "code": failed.code, "param": failed.param}}


class MessageWriter:
    """An `EventWriter`: one content block at a time, opened by its first part and closed by the first of the next one."""

    def __init__(self, call_id: str, body: Json, created: int) -> None:
        self._message = _frame(call_id, body["model"]) | {"content": [], "stop_reason": None, "stop_sequence": None}
        self._begun = False
        self._open = ""
        self._index = -1

    def parts(self, parts: list[Part]) -> bytes:
        """Blocks and deltas."""
        return self._begin() + b"".join(self._part(part.delta) for part in parts)

    def end(self, response: Json, policy_version: int) -> bytes:
        """Closes the block, says why the message ended and what it cost."""
        usage = _usage(response["usage"])
        delta = _event("message_delta", {"delta": _ending(response["choices"][0]), "usage": usage, "policy_version": policy_version})
        return self._begin() + self._close() + delta + _event("message_stop", {})

    def error(self, error: ServiceError) -> bytes:
        """An error event."""
        return data(orjson.dumps(_error(error)), "error")

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        usage = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return _event("message_start", {"message": self._message | {"usage": usage}})

    def _part(self, delta: Json) -> bytes:
        if text := delta.get("reasoning_content"):
            return self._block(
                "thinking", {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": text}
            )
        if text := delta.get("content"):
            return self._block("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": text})
        return b"".join(self._call(call) for call in calls_in(delta))

    def _call(self, call: Json) -> bytes:
        function = call["function"]
        block: Json = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
        return self._block(f"call {call['index']}", block, {"type": "input_json_delta", "partial_json": function["arguments"]})

    def _block(self, key: str, block: Json, delta: Json) -> bytes:
        opened = b""
        if key != self._open:
            opened = self._close()
            self._open = key
            self._index += 1
            opened += _event("content_block_start", {"index": self._index, "content_block": block})
        return opened + _event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", {"index": self._index})


def _frame(call_id: str, model: str) -> Json:
    return {"id": call_id, "type": "message", "role": "assistant", "model": model}


def _ending(choice: Json) -> Json:
    stop_sequence = choice.get("matched_stop") if choice["finish_reason"] == "stop" else None
    reason = "stop_sequence" if stop_sequence else STOP_REASONS[choice["finish_reason"]]
    extras = {"malformed_tool_call": choice["malformed_tool_call"]} if "malformed_tool_call" in choice else {}
    return {"stop_reason": reason, "stop_sequence": stop_sequence, **extras}


def _usage(usage: Json) -> Json:
    """Anthropic counts cached prompt tokens apart."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "output_tokens": usage["completion_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


def _event(kind: str, fields: Json) -> bytes:
    return data(orjson.dumps({"type": kind, **fields}), kind)


_error = error
MESSAGES = Dialect(anthropic_messages.to_chat, message, MessageWriter, error, anthropic_messages.NAMES)
"""Anthropic's Messages API."""
