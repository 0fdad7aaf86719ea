"""Owns the events of a streamed chat completion: ``chat.completion.chunk`` objects as OpenAI sends them, then ``[DONE]``.

For each choice a chunk with the role, chunks with deltas, one with the finish reason; then one with the usage where it was asked for.
Beyond OpenAI: the finishing chunk says ``policy_version``, because a header would have had to say it before the first token.
"""

import orjson

from services.common.errors import ServiceError
from services.policy_proxy.chat.answer import Part
from services.policy_proxy.chat.fields import Json
from services.policy_proxy.sse import data

DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """An `EventWriter` of one completion; ``created`` in Unix seconds."""

    def __init__(self, call_id: str, model: str, created: int, *, include_usage: bool) -> None:
        self._frame: Json = {"id": call_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._usage: Json = {"usage": None} if include_usage else {}
        self._begun: set[int] = set()

    def parts(self, parts: list[Part]) -> bytes:
        """A chunk for each part."""
        return b"".join(self._begin(part.choice) + self._chunk(part.choice, part.delta, logprobs=part.logprobs) for part in parts)

    def end(self, response: Json, policy_version: int) -> bytes:
        """The finishing chunk of each choice, usage, ``[DONE]``."""
        finishing = b"".join(self._finish(choice, policy_version) for choice in response["choices"])
        usage = data(orjson.dumps(self._frame | {"choices": [], "usage": response["usage"]})) if self._usage else b""
        return finishing + usage + DONE

    def error(self, error: ServiceError) -> bytes:
        """OpenAI's error object as an event."""
        return data(orjson.dumps(error.openai()))

    def _begin(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        return self._chunk(index, {"role": "assistant", "content": ""})

    def _finish(self, choice: Json, policy_version: int) -> bytes:
        extras: Json = {name: choice[name] for name in ("matched_stop", "malformed_tool_call") if name in choice}
        finish: Json = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"], "logprobs": None, **extras}
        chunk: Json = self._frame | {"choices": [finish], "policy_version": policy_version} | self._usage
        return self._begin(choice["index"]) + data(orjson.dumps(chunk))

    def _chunk(self, index: int, delta: Json, logprobs: object = ()) -> bytes:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": shown}
        return data(orjson.dumps(self._frame | {"choices": [choice]} | self._usage))
