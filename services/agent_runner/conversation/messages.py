"""Owns the messages of an episode: reading what a participant said, and writing it in the forms that others see.

A message that breaks the protocol (no JSON arguments, neither text nor calls) is a `Malformed`, decided on by the protocol, not here.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from services.agent_runner.domains import Requestor

Json = dict[str, Any]
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_CLOSE = "</think>"
SPOKEN = ("role", "content", "tool_calls", "reasoning_content")
"""What of a recorded message is the agent's own; the rest are notes."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as its maker meant it."""

    id: str
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation. Text of the agent is what it said aloud; ``private`` keeps its whole message for its own history."""

    role: Literal["assistant", "user", "tool"]
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    requestor: Requestor = "assistant"
    """Tool messages: whose call this answers."""
    tool_call_id: str | None = None
    error: bool = False
    """Tool messages: whether the call failed."""
    private: Json | None = None
    note: Json | None = None
    """Facts about the message for the record, such as a fault label."""

    @property
    def has_text(self) -> bool:
        """Whether there is text other than white space."""
        return bool(self.content and self.content.strip())


class Malformed(ValueError):
    """A participant's message cannot be understood. ``in_call`` is true where a tool call could not be parsed."""

    def __init__(self, why: str, *, in_call: bool = False) -> None:
        super().__init__(why)
        self.in_call = in_call


def read_agent_message(raw: Json) -> Message:
    """The assistant message of a chat completion. Raises `Malformed`.

    Reasoning stays in ``private``: neither ``reasoning_content`` nor anything in think tags is part of the text.
    """
    content = raw.get("content")
    text = spoken(content) if isinstance(content, str) else None
    calls: list[Any] = raw.get("tool_calls") or []
    message = Message("assistant", text, tuple(_read_call(call) for call in calls), private=raw)
    if not message.tool_calls and not message.has_text:
        raise Malformed("empty message: neither text nor a tool call")
    return message


def spoken(content: str) -> str:
    """``content`` without reasoning: no think blocks, and nothing before a closing tag whose opening one stood in the prompt."""
    if "think>" not in content:
        return content
    rest = _THINKING.sub("", content)
    return rest.rpartition(_CLOSE)[2].strip()


def _read_call(raw: Json) -> ToolCall:
    function: Json = raw.get("function") or {}
    name = str(function.get("name") or "")
    try:
        arguments: Any = json.loads(function.get("arguments") or "")
    except (TypeError, json.JSONDecodeError) as error:
        raise Malformed(f"arguments of {name or 'a tool call'} are not valid JSON: {error}", in_call=True) from error
    if not isinstance(arguments, dict):
        raise Malformed(f"arguments of {name or 'a tool call'} are not a JSON object", in_call=True)
    return ToolCall(str(raw.get("id") or ""), name, cast("Json", arguments))


def read_history(raw: Json) -> Message:
    """A message of a task's ``message_history``, in tau2's own form. Raises ValueError for a role that has no place there."""
    role = raw.get("role")
    if role == "tool":
        requestor = raw.get("requestor") or "assistant"
        return Message("tool", raw.get("content"), requestor=requestor, tool_call_id=raw["id"], error=bool(raw.get("error")))
    if role not in ("assistant", "user"):
        raise ValueError(f"message_history: a message of role {role!r} cannot begin a conversation")
    calls = tuple(ToolCall(call.get("id") or "", call["name"], call["arguments"]) for call in raw.get("tool_calls") or ())
    return Message(role, raw.get("content"), calls)


def read_record(raw: Json) -> Message:
    """A message as `for_record` wrote it. Raises `Malformed` for one that could not be understood when it was said, either."""
    role = raw["role"]
    if role == "tool":
        requestor = raw.get("requestor") or "assistant"
        return Message("tool", raw.get("content"), requestor=requestor, tool_call_id=raw["tool_call_id"], error=bool(raw.get("error")))
    calls = tuple(_read_call(call) for call in raw.get("tool_calls") or ())
    note = {key: raw[key] for key in ("fault",) if key in raw}
    private = {key: raw[key] for key in SPOKEN if key in raw} if role == "assistant" else None
    return Message(role, raw.get("content"), calls, private=private, note=note or None)


def _call_json(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def for_agent(message: Message) -> Json:
    """A message as the agent's chat history has it. Its own messages go back exactly as they came."""
    if message.private is not None:
        return message.private
    return _plain(message)


def for_record(message: Message) -> Json:
    """A message as the trajectory keeps it: OpenAI form, reasoning included.

    On tool messages ``requestor`` marks results of the user's tools and ``error`` failed calls. An agent's calls stand there as it wrote
    them.
    """
    record = _plain(message)
    if message.private is not None:
        if message.private.get("reasoning_content"):
            record["reasoning_content"] = message.private["reasoning_content"]
        if message.tool_calls:
            record["tool_calls"] = message.private["tool_calls"]
    if message.role == "tool" and message.requestor == "user":
        record["requestor"] = "user"
    if message.error:
        record["error"] = True
    return record | (message.note or {})


def _plain(message: Message) -> Json:
    plain: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [_call_json(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain
