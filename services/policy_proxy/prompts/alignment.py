"""Owns the token-in/token-out rule: which recorded call a new prompt extends, and which of its text is new.

Pure functions over text. A prompt extends a call where its text starts with what the policy was sent and then said. Then those exact
ids are used again and only the rest is tokenised. What the template writes for a message may differ in white space from what the
policy sampled; that still counts as extending it where the message in the history is the very one we answered with. Anything else is
another history: it gets a branch of its own and is never repaired.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import msgspec
import orjson

from services.common.wire.calls import CallRecord
from services.policy_proxy.prompts.texts import BeginningNeeded, Text

Json = dict[str, Any]
RESPONSE_KEY = "alignment"
"""Where a call record keeps its `Mark`: beside the OpenAI answer, and never sent to the client."""
_FULL_LENGTH = attrgetter("mark.full_length")


class Mark(msgspec.Struct, frozen=True):
    """What a later prompt is compared with. Lengths in UTF-8 bytes; digests stand for texts of 100 kB that nobody should keep."""

    n_messages: int
    """Messages of the request; the answer is the next one."""
    prompt_length: int
    prompt_digest: str
    full_length: int
    """Of prompt and output together."""
    full_digest: str
    ends_turn: bool
    """Whether the output ended with the end-of-turn token."""

    def as_json(self) -> Json:
        # By name: `asdict` copies recursively and costs six times this, once a call.
        return {
            "n_messages": self.n_messages,
            "prompt_length": self.prompt_length,
            "prompt_digest": self.prompt_digest,
            "full_length": self.full_length,
            "full_digest": self.full_digest,
            "ends_turn": self.ends_turn,
        }


class Captured(msgspec.Struct, frozen=True):
    """A recorded call and its mark."""

    mark: Mark
    record: CallRecord


class Extension(msgspec.Struct, frozen=True):
    """A prompt as the ids of ``parent`` (None: nothing) followed by the tokens of ``new_text``."""

    parent: CallRecord | None
    new_text: str


class Conversation(msgspec.Struct, frozen=True):
    """A new prompt. ``render_first(n)`` renders its first n messages without generation prompt."""

    text: Text
    messages: Sequence[Json]
    render_first: Callable[[int], Text]
    end_of_turn: str


def mark(prompt: Text, output: str, n_messages: int, *, ends_turn: bool) -> Mark:
    """The mark of a call that has just been made."""
    running = prompt.beginning.copy()
    running.update(prompt.rest)
    at_prompt, said = running.hexdigest(), output.encode()
    running.update(said)
    return Mark(n_messages, len(prompt), at_prompt, len(prompt) + len(said), running.hexdigest(), ends_turn)


def captured(record: CallRecord) -> Captured:
    """A record with the mark that it keeps. Raises ValueError where it has none."""
    try:
        return Captured(Mark(**record.response[RESPONSE_KEY]), record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"call {record.call_id} was recorded without the {RESPONSE_KEY} that later calls need") from error


def extend(conversation: Conversation, calls: Iterable[Captured]) -> Extension:
    """The longest recorded call that the conversation extends, else the root.

    Raises `BeginningNeeded` where that depends on the part of the conversation's text that is not at hand.
    """
    longest_first = sorted(calls, key=_FULL_LENGTH, reverse=True)
    # In nearly every episode the longest call is the right one, and hashing for it alone is enough.
    for group in (longest_first[:1], longest_first[1:]):
        text = conversation.text
        lengths = [n for call in group for n in (call.mark.prompt_length, call.mark.full_length) if text.skipped <= n <= len(text)]
        digests = text.digests(lengths)
        for call in group:
            rest = _rest(conversation, digests, call)
            if rest is not None:
                return Extension(call.record, rest)
    return Extension(None, conversation.text.after(0))


def same_message(given: Mapping[str, Any], answered: Mapping[str, Any]) -> bool:
    """Whether an assistant message of a history is the one we answered with (arguments compared as JSON values)."""
    return _essence(given) == _essence(answered)


def _rest(conversation: Conversation, digests: Mapping[int, str], call: Captured) -> str | None:
    """The text after ``call``, or None where the conversation does not extend it."""
    known, text = call.mark, conversation.text
    if known.full_length < text.skipped:
        raise BeginningNeeded
    if digests.get(known.full_length) == known.full_digest:
        rest = text.after(known.full_length)
        if known.ends_turn or rest.startswith(conversation.end_of_turn):
            return rest
    return _rest_after_message(conversation, digests, call)


def _rest_after_message(conversation: Conversation, digests: Mapping[int, str], call: Captured) -> str | None:
    """The text after the assistant message where the template writes that message in other words than the policy did."""
    known, text = call.mark, conversation.text
    if known.prompt_length >= len(text):
        return None
    answered = call.record.response["choices"][0]["message"]
    if len(conversation.messages) <= known.n_messages or not same_message(conversation.messages[known.n_messages], answered):
        return None
    if known.prompt_length < text.skipped:
        raise BeginningNeeded
    if digests.get(known.prompt_length) != known.prompt_digest:
        return None
    with_answer = conversation.render_first(known.n_messages + 1)
    if text.after_text(with_answer) is None:
        return None
    before, end_of_turn, after = with_answer.after(known.prompt_length).rpartition(conversation.end_of_turn)
    if not end_of_turn or after.strip():
        return None
    return text.after(known.prompt_length + len(before.encode()) + len(end_of_turn.encode()) * known.ends_turn)


def _essence(message: Mapping[str, Any]) -> tuple[str, str, str, list[tuple[str, str, Any]]]:
    calls = cast("list[Json]", message.get("tool_calls") or [])
    return (
        str(message.get("role")),
        str(message.get("content") or ""),
        str(message.get("reasoning_content") or ""),
        [(str(call.get("id")), str(call["function"]["name"]), _arguments(call["function"].get("arguments"))) for call in calls],
    )


def _arguments(value: Any) -> Any:
    return orjson.loads(value or "{}") if isinstance(value, str) else value
