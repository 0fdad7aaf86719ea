"""Owns the messages of an episode: reading what a participant said, and writing it in the forms that others see.

A message that breaks the protocol (no JSON arguments, neither text nor calls) is a `Malformed`, decided on by the protocol, not here.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from services.agent_runner.domains import Requestor
from services.common.wire.users import UserSideMessage, UserToolCall

Json = dict[str, Any]
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


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
    private: Json | None = None
    note: Json | None = None
    """Facts about the message for the record, such as a fault label."""

    @property
    def has_text(self) -> bool:
        """Whether there is text other than white space."""
        return bool(self.content and self.content.strip())


class Malformed(ValueError):
    """A participant's message cannot be understood. The message says why."""


def read_agent_message(raw: Json) -> Message:
    """The assistant message of a chat completion. Raises `Malformed`.

    Reasoning stays in ``private``: neither ``reasoning_content`` nor anything in think tags is part of the text.
    """
    content = raw.get("content")
    text = _THINKING.sub("", content).strip() if isinstance(content, str) and "<think>" in content else content
    calls: list[Any] = raw.get("tool_calls") or []
    message = Message("assistant", text, tuple(_read_call(call) for call in calls), private=raw)
    if not message.tool_calls and not message.has_text:
        raise Malformed("empty message: neither text nor a tool call")
    return message


def _read_call(raw: Json) -> ToolCall:
    function: Json = raw.get("function") or {}
    name = str(function.get("name") or "")
    try:
        arguments: Any = json.loads(function.get("arguments") or "")
    except (TypeError, json.JSONDecodeError) as error:
        raise Malformed(f"arguments of {name or 'a tool call'} are not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise Malformed(f"arguments of {name or 'a tool call'} are not a JSON object")
    return ToolCall(str(raw.get("id") or ""), name, cast("Json", arguments))


def _call_json(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def for_agent(message: Message) -> Json:
    """A message as the agent's chat history has it. Its own messages go back exactly as they came."""
    if message.private is not None:
        return message.private
    return _plain(message)


def for_user(message: Message) -> UserSideMessage:
    """A message as the user sees it."""
    calls = [UserToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls]
    return UserSideMessage(role=message.role, content=message.content, tool_calls=calls, tool_call_id=message.tool_call_id)


def for_record(message: Message) -> Json:
    """A message as the trajectory keeps it: OpenAI form, reasoning included, plus ``requestor`` on results of the user's tools."""
    record = _plain(message)
    if message.private is not None and message.private.get("reasoning_content"):
        record["reasoning_content"] = message.private["reasoning_content"]
    if message.role == "tool" and message.requestor == "user":
        record["requestor"] = "user"
    return record | (message.note or {})


def _plain(message: Message) -> Json:
    plain: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [_call_json(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain
