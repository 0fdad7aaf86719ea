"""Owns what one call does: prompt, intent, generation or demonstration, reading, durable record.

The record is in the store before the caller gets its answer, or the end of it where it is streamed. A request for several choices is
several calls after the same prompt: all are begun before any is made, and the first one, whose record holds the whole answer, is
recorded last; until then the session is incomplete. Refuses prompts over the context limit, before anything is begun.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from services.common.errors import BadRequest
from services.common.wire.calls import CallRecord
from services.policy_proxy.calls.feed import Feed
from services.policy_proxy.calls.generation import Generated, Generator
from services.policy_proxy.calls.records import Spoken, Turn, record_of
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.calls.service import CallKey
from services.policy_proxy.calls.speech import Form, Speech, cut_at_stop, read_text
from services.policy_proxy.chat import ChatRequest, Demonstration, Json
from services.policy_proxy.chat.answer import assistant_message, call_parts, message_parts, token_logprobs
from services.policy_proxy.metrics import ProxyMetrics
from services.policy_proxy.parsing import THINK_OPEN, Reading, Said
from services.policy_proxy.prompts.prompts import Prompts
from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.sessions.table import Done, Session, SessionTable

SEED_STEP = 1_000_003
"""Between the seeds of the choices of one request: with the same seed they would all be the same."""
LONGEST_ID_WITH_CHOICES = 157
"""The other choices add a suffix of up to three characters, and an id has at most 160."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens, from ``gconfig``, and the parsers, from ``rollout.agent``."""

    context_tokens: int
    max_new_tokens: int
    reasoning_parser: str
    tool_call_parser: str


class Turns:
    """Makes calls and records them."""

    def __init__(self, renderer: Renderer, sessions: SessionTable, generator: Generator, limits: Limits, metrics: ProxyMetrics) -> None:
        self._renderer = renderer
        self._prompts = Prompts(renderer, limits.context_tokens, sessions.tips)
        self._sessions = sessions
        self._generator = generator
        self._limits = limits
        self._metrics = metrics

    async def generate(self, session: Session, key: CallKey, request: ChatRequest, feed: Feed) -> Done:
        """Lets the policy speak."""
        turn = Turn(session, key, request, await self._prompts.of(session, request))
        sampling = self._sampling(turn)
        if request.n > 1:
            return await self._generate_choices(turn, sampling, feed)
        self._generator.check_room()
        intent = self._sessions.begin(session, key.call_id, key.digest)
        # The intent travels beside the generation, unless something of that is said at once, or the store may not be there.
        spoken = None if request.stream or not self._sessions.log_flows else await self._speak(turn, sampling, feed, 0)
        if not await self._sessions.begun(session, intent):
            turn, spoken = replace(turn, prompt=await self._prompts.of(session, request)), None
            sampling = self._sampling(turn)
        if spoken is None:
            spoken = await self._speak(turn, sampling, feed, 0)
        return await self._end(turn, spoken, [], feed)

    async def demonstrate(self, session: Session, key: CallKey, shown: Demonstration, policy_version: int) -> Done:
        """Records a message as the tokens the policy would have had to say."""
        turn = Turn(session, key, shown.request, await self._prompts.of(session, shown.request))
        text = self._prompts.spoken_text(turn.prompt, shown)
        ids = [int(token) for token in await self._renderer.encode(text)]
        self._prompts.room(turn.prompt, len(ids))
        generated = Generated(ids=ids, versions=[(policy_version, len(ids))], finish="stop")
        record = await self._record(turn, Spoken(0, generated, text, shown.message), [])
        self._metrics.calls.labels("demonstrated").inc()
        return Done(record)

    async def count(self, session: Session, request: ChatRequest) -> int:
        """Tokens that the prompt of this request would have."""
        return len((await self._prompts.of(session, request)).ids)

    async def _generate_choices(self, turn: Turn, sampling: Sampling, feed: Feed) -> Done:
        session, key = turn.session, turn.key
        if len(key.call_id) > LONGEST_ID_WITH_CHOICES:
            name = "Idempotency-Key"
            raise BadRequest(f"{name}: at most {LONGEST_ID_WITH_CHOICES} characters beside n > 1", code="invalid_value", param=name)
        self._generator.check_room()
        # After a crash some are there already; they stand as they are, and an intent would open them again.
        missing = [index for index in range(turn.request.n) if key.choice_id(index) not in session.calls]
        for intent in [self._sessions.begin(session, key.choice_id(index), key.digest) for index in missing]:
            await self._sessions.begun(session, intent)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {index: group.create_task(self._speak(turn, _seeded(sampling, index), feed, index)) for index in missing}
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        others: list[CallRecord] = []
        for index in range(1, turn.request.n):
            known = session.calls.get(key.choice_id(index))
            others.append(known.record if known is not None else await self._record(turn, tasks[index].result(), []))
        return await self._end(turn, tasks[0].result(), others, feed)

    async def _speak(self, turn: Turn, sampling: Sampling, feed: Feed, index: int) -> Spoken:
        """One choice; of a streamed one everything but its tool calls is put into the feed."""
        request, form = turn.request, self._form(turn)
        speech = None
        if request.stream and form.is_incremental:
            speech = Speech(index, form, self._renderer, feed.put, with_logprobs=request.n_top is not None)
        generated = await self._generator.generate(
            turn.key.choice_id(index),
            turn.prompt.ids,
            sampling,
            turn.session.server,
            listener=speech.hear if speech else None,
            n_top=request.n_top or 0,
            trace_id=turn.key.trace_id,
        )
        turn.session.server = generated.server
        self._metrics.generated.inc()
        self._metrics.resubmissions.inc(generated.submissions - 1)
        text = self._renderer.decode(generated.ids)
        said = speech.finish() if speech else self._read(generated, text, form)
        if said.malformed:
            self._metrics.malformed.inc()
        problem = (said.problem or "a tool call cannot be read") if said.malformed else ""
        return Spoken(index, generated, text, assistant_message(said), problem, sampling, self._logprobs(request, generated))

    def _read(self, generated: Generated, text: str, form: Form) -> Said:
        ends_turn = generated.ids[-1:] == [self._renderer.eos_id]
        return read_text(cut_at_stop(text.removesuffix(self._renderer.end_of_turn) if ends_turn else text, form.stop), form)

    def _logprobs(self, request: ChatRequest, generated: Generated) -> list[Json] | None:
        if request.n_top is None:
            return None
        return token_logprobs(generated.ids, generated.logprobs or (), generated.top, self._renderer.token_bytes)

    async def _end(self, turn: Turn, spoken: Spoken, others: Sequence[CallRecord], feed: Feed) -> Done:
        """Records; then the calls that were made may leave, because each is there to be replayed."""
        record = await self._record(turn, spoken, others)
        if turn.request.stream:
            parts_of = call_parts if self._form(turn).is_incremental else message_parts
            for chosen in record.response["choices"]:
                feed.put(parts_of(chosen["index"], chosen["message"]))
        return Done(record, spoken.generated.server_s)

    def _sampling(self, turn: Turn) -> Sampling:
        request = turn.request
        room = self._prompts.room(turn.prompt, 1)
        shaping: Json = {"top_p": 1.0, **request.shaping.arguments}
        if unknown := [token for token in shaping.get("logit_bias", ()) if int(token) >= self._renderer.vocab_size]:
            raise BadRequest(f"logit_bias: the vocabulary has no token {unknown[0]}", code="invalid_value", param="logit_bias")
        return Sampling(
            temperature=request.temperature,
            max_new_tokens=min(request.max_tokens or self._limits.max_new_tokens, room),
            stop_token_id=self._renderer.eos_id,
            seed=request.seed,
            stop=request.stop,
            **shaping,
        )

    def _form(self, turn: Turn) -> Form:
        request = turn.request
        reading = Reading(
            reasoning_parser=self._limits.reasoning_parser,
            tool_call_parser=self._limits.tool_call_parser,
            in_reasoning=turn.prompt.text.ends_with(THINK_OPEN),
            with_tools=bool(request.tools),
            tools=request.tools,
            max_calls=0 if request.parallel_tool_calls else 1,
        )
        return Form(reading, request.stop, request.shaping.forced)

    async def _record(self, turn: Turn, spoken: Spoken, others: Sequence[CallRecord]) -> CallRecord:
        session, branches = turn.session, False

        def make(ordinal: int) -> CallRecord:
            # Asked when it is this call's turn to be recorded: of calls made side by side only the first goes on where its parent ended.
            nonlocal branches
            record = record_of(turn, spoken, ordinal, others, self._renderer.eos_id)
            branches = record.call_id not in session.calls and session.is_branch(record.parent)
            return record

        record = await self._sessions.capture(session, make)
        self._prompts.keep(turn.prompt, record, len(turn.request.messages))
        self._metrics.branches.inc(branches)
        n_prompt, n_new, n_output = len(turn.prompt.ids), len(turn.prompt.new_ids), len(spoken.generated.ids)
        self._metrics.new_prompt_tokens.inc(n_new)
        self._metrics.reused_prompt_tokens.inc(n_prompt - n_new)
        self._metrics.output_tokens.inc(n_output)
        return record


def _seeded(sampling: Sampling, index: int) -> Sampling:
    if sampling.seed is None or not index:
        return sampling
    return replace(sampling, seed=(sampling.seed + SEED_STEP * index) % 2**31)
