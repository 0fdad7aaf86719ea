"""Owns OpenAI's Responses API as a form of chat completions: the events of a stream.

One output item at a time: added, its deltas, done. Reasoning and text items are opened by their first part; a function call comes whole.
"""

from typing import Any

import orjson

from services.common.errors import ServiceError
from services.policy_proxy.chat.answer import Part, calls_in
from services.policy_proxy.chat.fields import Json
from services.policy_proxy.dialects import responses_answers as answers
from services.policy_proxy.dialects import responses_requests
from services.policy_proxy.dialects.base import Dialect
from services.policy_proxy.sse import data


class ResponseWriter:
    """An `EventWriter` of one response."""

    def __init__(self, call_id: str, body: Json, created: int) -> None:
        self._call_id, self._body, self._created = call_id, body, created
        self._number = 0
        self._index = -1
        self._open = ""
        self._text = ""
        self._logprobs: list[Any] = []

    def parts(self, parts: list[Part]) -> bytes:
        """Items and deltas."""
        return self._begin() + b"".join(self._part(part) for part in parts)

    def end(self, response: Json, policy_version: int) -> bytes:
        """Closes the last item; the whole response."""
        whole = answers.response(response, self._body)
        kind = f"response.{whole['status']}"
        return self._begin() + self._close() + self._event(kind, {"response": whole, "policy_version": policy_version})

    def error(self, error: ServiceError) -> bytes:
        """An error event."""
        return self._event("error", {"code": error.code, "message": error.detail, "param": error.param})

    def _begin(self) -> bytes:
        if self._number:
            return b""
        frame = answers.frame(self._call_id, self._body, self._created, "in_progress")
        return self._event("response.created", {"response": frame}) + self._event("response.in_progress", {"response": frame})

    def _part(self, part: Part) -> bytes:
        self._logprobs += part.logprobs
        if text := part.delta.get("reasoning_content"):
            return self._delta("reasoning", text)
        if text := part.delta.get("content"):
            return self._delta("message", text, logprobs=list(part.logprobs))
        return b"".join(self._call(call) for call in calls_in(part.delta))

    def _delta(self, kind: str, text: str, **fields: Any) -> bytes:
        opened = b"" if kind == self._open else self._close() + self._open_item(kind)
        self._text += text
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        return opened + self._event(name, self._place() | {"delta": text} | fields)

    def _open_item(self, kind: str) -> bytes:
        self._open, self._text = kind, ""
        self._index += 1
        if kind == "reasoning":
            item: Json = answers.reasoning_item(self._call_id, "") | {"content": []}
            return self._event("response.output_item.added", {"output_index": self._index, "item": item})
        item: Json = answers.message_item(self._call_id, "", [], "in_progress") | {"content": []}
        added = self._event("response.output_item.added", {"output_index": self._index, "item": item})
        return added + self._event("response.content_part.added", self._place() | {"part": answers.text_part("", [])})

    def _close(self) -> bytes:
        kind, self._open = self._open, ""
        if kind == "reasoning":
            item = answers.reasoning_item(self._call_id, self._text)
            done = self._event("response.reasoning_text.done", self._place(item) | {"text": self._text})
        elif kind == "message":
            item = answers.message_item(self._call_id, self._text, self._logprobs)
            place = self._place(item)
            done = self._event("response.output_text.done", place | {"text": self._text, "logprobs": self._logprobs})
            done += self._event("response.content_part.done", place | {"part": item["content"][0]})
        else:
            return b""
        return done + self._event("response.output_item.done", {"output_index": self._index, "item": item})

    def _call(self, call: Json) -> bytes:
        closed = self._close()
        self._index += 1
        item = answers.call_item(call)
        place = {"output_index": self._index, "item_id": item["id"]}
        begun = item | {"arguments": "", "status": "in_progress"}
        return b"".join(
            (
                closed,
                self._event("response.output_item.added", {"output_index": self._index, "item": begun}),
                self._event("response.function_call_arguments.delta", place | {"delta": item["arguments"]}),
                self._event("response.function_call_arguments.done", place | {"arguments": item["arguments"], "name": item["name"]}),
                self._event("response.output_item.done", {"output_index": self._index, "item": item}),
            )
        )

    def _place(self, item: Json | None = None) -> Json:
        prefix = "rs" if self._open == "reasoning" else "msg"
        return {"item_id": item["id"] if item else f"{prefix}_{self._call_id}", "output_index": self._index, "content_index": 0}

    def _event(self, kind: str, fields: Json) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return data(orjson.dumps(event), kind)


RESPONSES = Dialect(responses_requests.to_chat, answers.response, ResponseWriter, names=responses_requests.NAMES)
"""OpenAI's Responses API."""
