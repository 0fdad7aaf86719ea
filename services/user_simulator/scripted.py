"""Owns the scripted user: deterministic and without a model, for tests and runs that must not need one. A stand-in for a customer.

Tells its reason for calling, runs the tool it is asked to run and repeats what the phone says, confirms, and hangs up. Each turn follows
from the conversation alone. Refuses to toggle the same switch twice on a repeated request: it reports the first result instead.
"""

import re
from collections.abc import Sequence

from services.common.wire.users import Scenario, UserSideMessage, UserToolCall, UserTurnBody, UserTurnReply
from services.user_simulator.protocol import stop_kind
from services.user_simulator.requests import Confirm, Goodbye, Introduce, RunTool, Transferred, understand

UNCLEAR = "I don't know how to do that."
MAX_UNCLEAR = 3
"""So many turns in a row that it did not understand, and the user gives up."""
MAX_TURNS = 60

_FIRST_PERSON = (
    (r"\byou are\b", "I am"),
    (r"\byou were\b", "I was"),
    (r"\byourself\b", "myself"),
    (r"\byours\b", "mine"),
    (r"\byour\b", "my"),
    (r"\byou\b", "I"),
)


def scripted_turn(body: UserTurnBody) -> UserTurnReply:
    """The user's next turn: text or one tool call, never both."""
    last = body.messages[-1]
    if last.role == "tool":
        return _say(_report(body.messages))
    if not any(message.role == "user" for message in body.messages):
        return _say(_opening(body.scenario))
    said = sum(message.role == "user" and not message.tool_calls for message in body.messages)
    return _say("###STOP###") if said >= MAX_TURNS else _answer(body, last.content or "")


def _answer(body: UserTurnBody, text: str) -> UserTurnReply:
    request = understand(text, [str(tool["function"]["name"]) for tool in body.tools])
    if isinstance(request, RunTool):
        return _run(request, body.messages, again="again" in text.lower())
    if isinstance(request, Transferred):
        return _say("###TRANSFER###")
    if isinstance(request, Goodbye):
        return _say("Thank you, that is all. ###STOP###")
    if isinstance(request, Introduce):
        return _say(first_person(body.scenario.known_info) or "I have nothing to add.")
    if isinstance(request, Confirm):
        return _say("Yes, please go ahead.")
    texts = [message.content for message in body.messages if message.role == "user" and not message.tool_calls]
    gave_up = len(texts) >= MAX_UNCLEAR and all(text == UNCLEAR for text in texts[-MAX_UNCLEAR:])
    return _say("###OUT-OF-SCOPE###" if gave_up else UNCLEAR)


def _run(request: RunTool, history: Sequence[UserSideMessage], *, again: bool) -> UserTurnReply:
    calls = [call for message in history for call in message.tool_calls]
    earlier = next((call for call in reversed(calls) if call.name == request.name), None)
    if request.name.startswith("toggle_") and earlier is not None and not again:
        return _say(f"I have done that already. {_told(earlier, history)}")
    call = UserToolCall(id=f"user_call_{len(calls)}", name=request.name, arguments=request.arguments)
    return UserTurnReply(tool_calls=[call])


def _report(history: Sequence[UserSideMessage]) -> str:
    """Repeats the results of the tool calls just made."""
    made = next(message for message in reversed(history) if message.role == "user" and message.tool_calls)
    return "\n".join(_told(call, history) for call in made.tool_calls)


def _told(call: UserToolCall, history: Sequence[UserSideMessage]) -> str:
    result = next((message.content for message in history if message.tool_call_id == call.id), None)
    return f"I ran {call.name}. It says: {result or 'nothing'}"


def _opening(scenario: Scenario) -> str:
    return first_person(scenario.reason_for_call) or "Hi, I need help."


def first_person(text: str) -> str:
    """A scenario's "you" as "I"; good enough to be understood."""
    for pattern, replacement in _FIRST_PERSON:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text


def _say(text: str) -> UserTurnReply:
    return UserTurnReply(content=text, stop=stop_kind(text))
