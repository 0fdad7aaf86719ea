"""Owns what one call does: prompt, intent, generation or demonstration, reading, durable record.

The record is in the store before the caller gets its answer. Refuses prompts over the context limit, before anything is begun.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import BadRequest
from services.common.wire.calls import CallRecord, Ids, pack_ids, pack_logprobs
from services.policy_proxy import chat
from services.policy_proxy.alignment import RESPONSE_KEY, Conversation, extend, mark
from services.policy_proxy.calls import CallKey
from services.policy_proxy.chat import ChatRequest, Demonstration, Json
from services.policy_proxy.generation import Generated, Generator
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.parsing import THINK_OPEN, read_answer
from services.policy_proxy.rendering import Renderer
from services.policy_proxy.sessions import Done, Session, SessionTable
from services.policy_proxy.sglang import Sampling
from services.policy_proxy.store import Store


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens, from ``gconfig``, and the reasoning parser, from ``rollout.agent``."""

    context_tokens: int
    max_new_tokens: int
    reasoning_parser: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to be sent: ``ids`` is the parent's sequence followed by ``new_ids``."""

    text: str
    parent: str | None
    new_ids: Ids
    ids: Ids


@dataclass(frozen=True, slots=True)
class Turn:
    """One call under way."""

    session: Session
    key: CallKey
    request: ChatRequest
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Spoken:
    """What came after the prompt: its tokens, their text (end-of-turn included), and the message it was read as."""

    generated: Generated
    text: str
    message: Json
    malformed: bool = False


class Turns:
    """Makes calls and records them."""

    def __init__(
        self, renderer: Renderer, sessions: SessionTable, store: Store, generator: Generator, limits: Limits, metrics: ProxyMetrics
    ) -> None:
        self._renderer = renderer
        self._sessions = sessions
        self._store = store
        self._generator = generator
        self._limits = limits
        self._metrics = metrics

    async def generate(self, session: Session, key: CallKey, request: ChatRequest) -> Done:
        """Lets the policy speak."""
        turn = Turn(session, key, request, await self._prompt(session, request))
        room = self._room(turn.prompt, 1)
        budget = min(request.max_tokens or self._limits.max_new_tokens, room)
        sampling = Sampling(request.temperature, request.top_p, budget, self._renderer.eos_id, request.seed)
        await self._store.intend(session.session_id, key.call_id, key.digest)
        generated = await self._generator.generate(key.call_id, turn.prompt.ids, sampling, session.server)
        session.server = generated.server
        record = await self._record(turn, self._read(turn, generated))
        self._metrics.calls.labels("generated").inc()
        self._metrics.resubmissions.inc(generated.submissions - 1)
        return Done(record, generated.server_s)

    async def demonstrate(self, session: Session, key: CallKey, shown: Demonstration, policy_version: int) -> Done:
        """Records a message as the tokens the policy would have had to say."""
        turn = Turn(session, key, shown.request, await self._prompt(session, shown.request))
        text = self._spoken_text(turn, shown)
        ids = [int(token) for token in await self._renderer.encode(text)]
        self._room(turn.prompt, len(ids))
        generated = Generated(ids=ids, versions=[(policy_version, len(ids))], finish="stop")
        record = await self._record(turn, Spoken(generated, text, shown.message))
        self._metrics.calls.labels("demonstrated").inc()
        return Done(record)

    async def _prompt(self, session: Session, request: ChatRequest) -> Prompt:
        conversation = Conversation(
            text=self._render(request, request.messages, add_generation_prompt=True),
            messages=request.messages,
            render_first=lambda n: self._render(request, request.messages[:n], add_generation_prompt=False),
            end_of_turn=self._renderer.end_of_turn,
        )
        found = extend(conversation, list(session.calls.values()))
        parent = None if found.parent is None else found.parent.call_id
        before = session.sequence(parent)
        new_ids = await self._renderer.encode(found.new_text)
        return Prompt(conversation.text, parent, new_ids, np.concatenate([before, new_ids]))

    def _render(self, request: ChatRequest, messages: Sequence[Json], *, add_generation_prompt: bool) -> str:
        return self._renderer.render(messages, request.tools, add_generation_prompt=add_generation_prompt, extra=request.template_kwargs)

    def _room(self, prompt: Prompt, needed: int) -> int:
        room = self._limits.context_tokens - len(prompt.ids)
        if room < needed:
            raise BadRequest(
                f"messages: the prompt has {len(prompt.ids)} tokens and needs {needed} more, "
                f"the context limit is {self._limits.context_tokens}",
                code="context_length_exceeded",
                param="messages",
            )
        return room

    def _spoken_text(self, turn: Turn, shown: Demonstration) -> str:
        whole = self._render(turn.request, [*turn.request.messages, shown.template_message], add_generation_prompt=False)
        after_prompt = whole.removeprefix(turn.prompt.text)
        spoken, end_of_turn, _ = after_prompt.rpartition(self._renderer.end_of_turn)
        if len(after_prompt) == len(whole) or not end_of_turn:
            raise BadRequest("message: the chat template does not write it as a turn after its own generation prompt", param="message")
        return spoken + end_of_turn

    def _read(self, turn: Turn, generated: Generated) -> Spoken:
        text = self._renderer.decode(generated.ids)
        said = read_answer(
            text.removesuffix(self._renderer.end_of_turn),
            reasoning_parser=self._limits.reasoning_parser,
            in_reasoning=turn.prompt.text.rstrip().endswith(THINK_OPEN),
            with_tools=bool(turn.request.tools),
        )
        if said.malformed:
            self._metrics.malformed.inc()
        return Spoken(generated, text, chat.assistant_message(said), said.malformed)

    async def _record(self, turn: Turn, spoken: Spoken) -> CallRecord:
        if turn.session.is_branch(turn.prompt.parent):
            self._metrics.branches.inc()
        n_prompt, n_new, n_output = len(turn.prompt.ids), len(turn.prompt.new_ids), len(spoken.generated.ids)
        response = self._response(turn, spoken)
        record = await self._sessions.capture(turn.session, lambda ordinal: _record_of(turn, spoken, response, ordinal))
        self._metrics.prompt_tokens.labels("new").inc(n_new)
        self._metrics.prompt_tokens.labels("reused").inc(n_prompt - n_new)
        self._metrics.output_tokens.inc(n_output)
        return record

    def _response(self, turn: Turn, spoken: Spoken) -> Json:
        finish = "tool_calls" if spoken.message.get("tool_calls") else spoken.generated.finish
        usage = (len(turn.prompt.ids), len(spoken.generated.ids))
        response = chat.completion(turn.key.call_id, turn.request.model, spoken.message, finish, usage)
        ends_turn = spoken.generated.ids[-1:] == [self._renderer.eos_id]
        kept = mark(turn.prompt.text, spoken.text, len(turn.request.messages), ends_turn=ends_turn)
        return response | {RESPONSE_KEY: kept.as_json()}


def _record_of(turn: Turn, spoken: Spoken, response: Json, ordinal: int) -> CallRecord:
    generated = spoken.generated
    return CallRecord(
        call_id=turn.key.call_id,
        session_id=turn.session.session_id,
        ordinal=ordinal,
        parent=turn.prompt.parent,
        prompt=turn.prompt.new_ids.astype("<i4").tobytes(),
        output=pack_ids(generated.ids),
        logprobs=None if generated.logprobs is None else pack_logprobs(generated.logprobs),
        versions=generated.versions,
        finish_reason=generated.finish,
        temperature=turn.request.temperature,
        top_p=turn.request.top_p,
        malformed_tool_call=spoken.malformed,
        digest=turn.key.digest,
        response=response,
        started_at=turn.key.started_at,
        ended_at=time.time(),
    )
