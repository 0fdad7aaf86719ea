"""Owns the user behind an OpenAI-compatible server: upstream tau2's prompt, roles flipped, a deadline per turn, a resample on a fault.

The user's own tool calls and their results stay in its history. Refuses to raise: a server that does not answer is a labelled turn.
"""

import asyncio
import json
import os
import re
from collections.abc import Sequence
from typing import Any, cast

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.users import Fault, UserSideMessage, UserToolCall, UserTurnBody, UserTurnReply
from services.user_simulator.protocol import fault_of, stop_kind

Json = dict[str, Any]

API_KEY_ENV = "FRONTDESK_USER_LLM_API_KEY"
ATTEMPTS = 2
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class BadArguments(ValueError):
    """A tool call's arguments are no JSON object."""


class ModelUser:
    """Plays users with one model. ``base_url`` ends where ``/chat/completions`` begins, as OpenAI SDKs have it."""

    def __init__(self, base_url: str, model: str, arguments: Json, *, turn_timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {os.environ.get(API_KEY_ENV, 'none')}"}
        self._client = ServiceClient("user model", base_url, timeout_s=turn_timeout_s, retry_s=turn_timeout_s, headers=headers)
        # litellm's provider prefix, which the configs of AReaL's examples carry, is no part of the model's name on its server.
        self._model = model.removeprefix("openai/")
        self._arguments = arguments
        self._turn_timeout_s = turn_timeout_s

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def turn(self, body: UserTurnBody) -> UserTurnReply:
        """The user's next turn, sampled anew once where the first one has a fault."""
        reply = UserTurnReply(fault=Fault.BACKEND_ERROR, detail=f"no answer within {self._turn_timeout_s:g} s")
        try:
            async with asyncio.timeout(self._turn_timeout_s):
                for attempt in range(1, ATTEMPTS + 1):
                    reply = await self._sample(body, attempt)
                    if reply.fault is Fault.OK:
                        break
        except TimeoutError:
            pass  # the first attempt's turn, faulty as it is, or the backend error above
        except RemoteError as error:
            reply = UserTurnReply(fault=Fault.BACKEND_ERROR, detail=str(error)[:500])
        return reply

    async def _sample(self, body: UserTurnBody, attempt: int) -> UserTurnReply:
        request: Json = {"model": self._model, "messages": prompt(body), "seed": (body.seed + attempt - 1) % 2**31, **self._arguments}
        if body.tools:
            request |= {"tools": body.tools, "tool_choice": "auto"}
        answer: Any = await self._client.post("/chat/completions", request)
        return read_turn(answer, body, attempt)


def prompt(body: UserTurnBody) -> list[Json]:
    """The chat for the model: upstream's system prompt, then the user's view with the roles swapped."""
    system = f"{body.guidelines}\n\n<scenario>\n{body.scenario.text}\n</scenario>"
    return [{"role": "system", "content": system}, *(_flipped(message) for message in body.messages)]


def _flipped(message: UserSideMessage) -> Json:
    if message.role == "tool":
        return {"role": "tool", "content": message.content, "tool_call_id": message.tool_call_id}
    if message.role == "assistant":
        return {"role": "user", "content": message.content}
    flipped: Json = {"role": "assistant", "content": message.content or ""}
    if message.tool_calls:
        flipped["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
            for call in message.tool_calls
        ]
    return flipped


def read_turn(answer: Any, body: UserTurnBody, attempt: int) -> UserTurnReply:
    """A chat completion as a labelled turn; thinking is cut off, because the agent must not read it."""
    try:
        message: Json = answer["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return UserTurnReply(fault=Fault.BACKEND_ERROR, detail="the answer is no chat completion", attempts=attempt)
    raw = message.get("content")
    content = _THINKING.sub("", raw).strip() if isinstance(raw, str) else None
    try:
        calls = [_read_call(call) for call in cast("Sequence[Json]", message.get("tool_calls") or ())]
    except BadArguments as error:
        return UserTurnReply(fault=Fault.OUT_OF_PROTOCOL, detail=str(error), attempts=attempt)
    names = frozenset(str(tool["function"]["name"]) for tool in body.tools)
    fault, detail = fault_of(content, calls, body.messages, names)
    stop = None if calls else stop_kind(content)
    return UserTurnReply(content=content or None, tool_calls=calls, stop=stop, fault=fault, detail=detail, attempts=attempt)


def _read_call(raw: Json) -> UserToolCall:
    function: Json = raw.get("function") or {}
    try:
        arguments: Any = json.loads(function.get("arguments") or "{}")
    except json.JSONDecodeError as error:
        raise BadArguments(f"arguments of {function.get('name')} are not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise BadArguments(f"arguments of {function.get('name')} are not a JSON object")
    return UserToolCall(id=str(raw.get("id")), name=str(function.get("name")), arguments=cast("Json", arguments))
