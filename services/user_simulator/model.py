"""Owns one turn of a user that a model plays: the deadline, the retries within it, and the one resample where the turn has a fault.

Back ends are behind `Backend`. Refuses to raise: a model that does not answer in time is a labelled turn, not an exception.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.common.wire.users import Fault, UserTurnBody, UserTurnReply
from services.user_simulator.completion import BackendFailed, Said, read_completion
from services.user_simulator.faults import Turn, judge
from services.user_simulator.prompt import prompt
from services.user_simulator.protocol import stop_kind
from services.user_simulator.tally import Tally

Json = dict[str, Any]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
UNUSABLE = frozenset({Fault.EMPTY, Fault.BACKEND_ERROR})
"""Turns that a conversation cannot go on with."""


class Backend(Protocol):
    """A model behind some API."""

    async def complete(self, request: Json) -> Any:
        """The chat completion for ``request`` (OpenAI's fields without ``model``), as plain JSON. Raises `BackendFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    turn_s: float
    """A turn, with everything that is tried for it."""
    call_s: float
    """One request."""


@dataclass(frozen=True, slots=True)
class ModelUser:
    """Plays users with one model. ``arguments`` go into each request as they are."""

    backend: Backend
    arguments: Json
    limits: Limits
    resample_temperature: float = 0.7
    persona_guidelines: str = ""
    tally: Tally = field(default_factory=Tally)

    async def turn(self, body: UserTurnBody) -> UserTurnReply:
        """The user's next turn. One with a fault is sampled anew once; the better of the two is the turn."""
        give_up_at = time.monotonic() + self.limits.turn_s
        first = await self._sample(body, 1, give_up_at)
        self.tally.first_samples[first.fault] += 1
        if first.fault in (Fault.OK, Fault.BACKEND_ERROR):
            return first
        self.tally.resampled += 1
        second = await self._sample(body, 2, give_up_at)
        if second.fault is Fault.OK or (first.fault in UNUSABLE and second.fault is not Fault.BACKEND_ERROR):
            return second
        return first.model_copy(update={"attempts": 2})

    async def _sample(self, body: UserTurnBody, attempt: int, give_up_at: float) -> UserTurnReply:
        try:
            said = await self._asked(self._request(body, attempt), give_up_at)
        except BackendFailed as error:
            return UserTurnReply(fault=Fault.BACKEND_ERROR, detail=str(error)[:500], attempts=attempt)
        return labelled(said, body, attempt)

    def _request(self, body: UserTurnBody, attempt: int) -> Json:
        seed = (body.seed + attempt - 1) % 2**31
        request: Json = {"messages": prompt(body, self.persona_guidelines), "seed": seed, **self.arguments}
        if attempt > 1:
            request["seed"] = seed
            request["temperature"] = max(float(request.get("temperature", 1.0)), self.resample_temperature)
        if body.tools:
            request |= {"tools": body.tools, "tool_choice": "auto"}
        return request

    async def _asked(self, request: Json, give_up_at: float) -> Said:
        """Asks until there is an answer or no time for one. Raises `BackendFailed` with the last reason."""
        pause = FIRST_PAUSE_S
        while True:
            left = give_up_at - time.monotonic()
            try:
                return await self._asked_once(request, min(left, self.limits.call_s))
            except BackendFailed as error:
                wait = pause * random.uniform(0.5, 1.5)
                if not error.retryable or time.monotonic() + wait >= give_up_at:
                    raise
            self.tally.retries += 1
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _asked_once(self, request: Json, limit_s: float) -> Said:
        try:
            async with asyncio.timeout(limit_s):
                return read_completion(await self.backend.complete(request))
        except TimeoutError:
            raise BackendFailed(f"no answer within {max(limit_s, 0):.3g} s", retryable=True) from None


def labelled(said: Said, body: UserTurnBody, attempt: int) -> UserTurnReply:
    """What the model said as a turn with its label."""
    names = frozenset(str(tool["function"]["name"]) for tool in body.tools)
    fault, detail = judge(Turn(said.content, said.calls, body.messages, names, body.scenario.text, body.guidelines))
    if said.broken is not None:
        fault, detail = Fault.OUT_OF_PROTOCOL, said.broken
    # A message with calls goes to the environment whatever its text says, so it does not end the conversation.
    stop = None if said.calls else stop_kind(said.content)
    return UserTurnReply(content=said.content, tool_calls=list(said.calls), stop=stop, fault=fault, detail=detail, attempts=attempt)
