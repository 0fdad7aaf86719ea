"""Owns what is recorded of a call: the tokens, how they were sampled, and the OpenAI answer that is replayed to whoever asks again.

Pure functions from what was said to a `CallRecord`. Refuses nothing.
"""

import time
from collections.abc import Sequence

import msgspec

from services.common.wire.calls import CallRecord, Ids, pack_ids, pack_logprobs
from services.policy_proxy.calls.generation import Generated
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.calls.service import CallKey
from services.policy_proxy.chat import ChatRequest, Json
from services.policy_proxy.chat.answer import Usage, choice, completion
from services.policy_proxy.prompts.alignment import RESPONSE_KEY, mark
from services.policy_proxy.prompts.template_run import Checkpoint
from services.policy_proxy.prompts.texts import Text
from services.policy_proxy.sessions.table import Session


class Prompt(msgspec.Struct, frozen=True):
    """A prompt ready to be sent: ``ids`` is the parent's sequence followed by ``new_ids``."""

    text: Text
    parent: str | None
    new_ids: Ids
    ids: Ids
    history: bytes
    """Digest of the request's messages."""
    checkpoint: Checkpoint | None
    """Where the text of a longer conversation may go on."""


class Turn(msgspec.Struct, frozen=True):
    """One call under way."""

    session: Session
    key: CallKey
    request: ChatRequest
    prompt: Prompt


class Spoken(msgspec.Struct, frozen=True):
    """What came after the prompt: its tokens, their text (end-of-turn included), and the message it was read as."""

    index: int
    generated: Generated
    text: str
    message: Json
    problem: str = ""
    """What is wrong with a tool call in it, "" where nothing is."""
    sampling: Sampling | None = None
    """None where nothing was sampled (demonstrations)."""
    logprobs: list[Json] | None = None
    """In OpenAI's form, where they were asked for."""


def record_of(turn: Turn, spoken: Spoken, ordinal: int, others: Sequence[CallRecord], eos_id: int) -> CallRecord:
    """The record of one choice; ``others`` are those of the other choices where this is the first one, whose answer holds all."""
    generated = spoken.generated
    return CallRecord(
        call_id=turn.key.choice_id(spoken.index),
        session_id=turn.session.session_id,
        ordinal=ordinal,
        parent=turn.prompt.parent,
        prompt=turn.prompt.new_ids.astype("<i4").tobytes(),
        output=pack_ids(generated.ids),
        logprobs=None if generated.logprobs is None else pack_logprobs(generated.logprobs),
        versions=generated.versions,
        finish_reason=generated.finish,
        temperature=turn.request.temperature,
        top_p=1.0 if spoken.sampling is None else spoken.sampling.top_p,
        malformed_tool_call=bool(spoken.problem),
        digest=turn.key.digest,
        response=_response_of(turn, spoken, others, eos_id),
        sampling={} if spoken.sampling is None else spoken.sampling.as_json(),
        trace_id=turn.key.trace_id,
        started_at=turn.key.started_at,
        ended_at=time.time(),
        server_s=generated.server_s,
    )


def _response_of(turn: Turn, spoken: Spoken, others: Sequence[CallRecord], eos_id: int) -> Json:
    generated, prompt = spoken.generated, turn.prompt
    choices = [_choice_of(spoken), *(other.response["choices"][0] for other in others)]
    n_completion = len(generated.ids) + sum(len(other.output) // 4 for other in others)
    # A call that was resubmitted may have found more than its own prompt in the cache.
    usage = Usage(len(prompt.ids), n_completion, min(generated.cached_tokens, len(prompt.ids)))
    response = completion(turn.key.choice_id(spoken.index), turn.request.model, choices, usage)
    ends_turn = generated.ids[-1:] == [eos_id]
    kept = mark(prompt.text, spoken.text, len(turn.request.messages), ends_turn=ends_turn)
    return response | {RESPONSE_KEY: kept.as_json()}


def _choice_of(spoken: Spoken) -> Json:
    generated = spoken.generated
    finish = "tool_calls" if spoken.message.get("tool_calls") else generated.finish
    written = choice(spoken.index, spoken.message, finish, spoken.logprobs)
    if isinstance(generated.matched_stop, str):
        written["matched_stop"] = generated.matched_stop
    if spoken.problem:
        written["malformed_tool_call"] = {"problem": spoken.problem}
    return written
