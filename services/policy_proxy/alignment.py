"""Owns the token-in/token-out rule: which recorded call a new prompt extends, and which of its text is new.

Pure functions over text. A prompt extends a call where its text starts with what the policy was sent and then said. Then those exact
ids are used again and only the rest is tokenised. What the template writes for a message may differ in white space from what the
policy sampled; that still counts as extending it where the message in the history is the very one we answered with. Anything else is
another history: it gets a branch of its own and is never repaired.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import orjson

from services.common.wire.calls import CallRecord

Json = dict[str, Any]
RESPONSE_KEY = "alignment"
"""Where a call record keeps its `Mark`: beside the OpenAI answer, and never sent to the client."""


@dataclass(frozen=True, slots=True)
class Mark:
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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Captured:
    """A recorded call and its mark."""

    mark: Mark
    record: CallRecord


@dataclass(frozen=True, slots=True)
class Extension:
    """A prompt as the ids of ``parent`` (None: nothing) followed by the tokens of ``new_text``."""

    parent: CallRecord | None
    new_text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A new prompt. ``render_first(n)`` renders its first n messages without generation prompt."""

    text: str
    messages: Sequence[Json]
    render_first: Callable[[int], str]
    end_of_turn: str


def mark(prompt_text: str, output_text: str, n_messages: int, *, ends_turn: bool) -> Mark:
    """The mark of a call that has just been made."""
    prompt = prompt_text.encode()
    full = prompt + output_text.encode()
    at_prompt, at_full = prefix_digests(full, [len(prompt), len(full)])
    return Mark(n_messages, len(prompt), at_prompt, len(full), at_full, ends_turn)


def captured(record: CallRecord) -> Captured:
    """A record with the mark that it keeps. Raises ValueError where it has none."""
    try:
        return Captured(Mark(**record.response[RESPONSE_KEY]), record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"call {record.call_id} was recorded without the {RESPONSE_KEY} that later calls need") from error


def extend(conversation: Conversation, calls: Sequence[Captured]) -> Extension:
    """The longest recorded call that the conversation extends, else the root."""
    data = conversation.text.encode()
    longest_first = sorted(calls, key=lambda call: -call.mark.full_length)
    # In nearly every episode the longest call is the right one, and hashing for it alone is enough.
    for group in (longest_first[:1], longest_first[1:]):
        marks = [call.mark for call in group]
        lengths = sorted({n for known in marks for n in (known.prompt_length, known.full_length) if n <= len(data)})
        digests = dict(zip(lengths, prefix_digests(data, lengths), strict=True))
        for call in group:
            rest = _rest(conversation, data, digests, call)
            if rest is not None:
                return Extension(call.record, rest)
    return Extension(None, conversation.text)


def prefix_digests(data: bytes, lengths: Sequence[int]) -> list[str]:
    """The digest of each prefix of ``data``, for ascending lengths, in one pass."""
    view = memoryview(data)
    running = hashlib.blake2b(digest_size=16)
    digests: list[str] = []
    done = 0
    for length in lengths:
        running.update(view[done:length])
        done = length
        digests.append(running.copy().hexdigest())
    return digests


def same_message(given: Mapping[str, Any], answered: Mapping[str, Any]) -> bool:
    """Whether an assistant message of a history is the one we answered with (arguments compared as JSON values)."""
    return _essence(given) == _essence(answered)


def _rest(conversation: Conversation, data: bytes, digests: Mapping[int, str], call: Captured) -> str | None:
    """The text after ``call``, or None where the conversation does not extend it."""
    known = call.mark
    if digests.get(known.prompt_length) != known.prompt_digest:
        return None
    if digests.get(known.full_length) == known.full_digest:
        rest = data[known.full_length :].decode()
        if known.ends_turn or rest.startswith(conversation.end_of_turn):
            return rest
    return _rest_after_message(conversation, call)


def _rest_after_message(conversation: Conversation, call: Captured) -> str | None:
    """The text after the assistant message where the template writes that message in other words than the policy did."""
    n = call.mark.n_messages
    answered = call.record.response["choices"][0]["message"]
    if len(conversation.messages) <= n or not same_message(conversation.messages[n], answered):
        return None
    with_answer = conversation.render_first(n + 1)
    if not conversation.text.startswith(with_answer):
        return None
    before, end_of_turn, after = with_answer.rpartition(conversation.end_of_turn)
    if not end_of_turn or after.strip() or len(before.encode()) < call.mark.prompt_length:
        return None
    return conversation.text[len(before) + len(end_of_turn) * call.mark.ends_turn :]


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
