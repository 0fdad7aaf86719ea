"""Owns how late the event loop runs, and how episodes share it: in what pace they begin, and in what pace they go on.

One process plays thousands of episodes on one loop. What is due at the same instant, such as the start of a large lease or the answers
that came in while a core was busy, would hold up every other episode, the heartbeat and the health routes; so it is spread. Refuses to
limit how many episodes run: that is the worker's capacity.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from services.common.http import ServiceClient

PROBE_EVERY_S = 0.02
PROBES_KEPT = 3000
"""A minute."""
SHORTEST_GAP_S, LONGEST_GAP_S = 0.001, 0.01
"""Between the starts of two episodes: 1,000 a second on an idle loop, 100 on one that is late anyway."""
STEPS_AT_ONCE = 12
"""Steps begun per round of the event loop, each of half a millisecond."""


class LoopLag:
    """How late the event loop runs a timer that is due, over the last minute."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=PROBES_KEPT)

    async def run(self) -> None:
        """Probes for as long as the service runs."""
        while True:
            due = time.perf_counter() + PROBE_EVERY_S
            await asyncio.sleep(PROBE_EVERY_S)
            self._late_s.append(max(0.0, time.perf_counter() - due))

    def quantile(self, q: float) -> float:
        """Seconds; ``q`` in [0, 1]. 0.0 before the first probe."""
        late_s = sorted(self._late_s)
        return late_s[min(int(q * len(late_s)), len(late_s) - 1)] if late_s else 0.0


class Turnstile:
    """Lets episodes begin one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()
        self._gap_s = SHORTEST_GAP_S

    async def admit(self) -> None:
        """Returns when the next episode may begin."""
        async with self._one_at_a_time:
            due = time.perf_counter() + self._gap_s
            await asyncio.sleep(self._gap_s)
            self._gap_s = min(max(time.perf_counter() - due, SHORTEST_GAP_S), LONGEST_GAP_S)


class Pace:
    """Lets so many steps begin per round of the event loop, first come first served; nobody waits on a loop that is idle.

    Where more is due than one core can do, it queues up here and not in the loop. And since answers come back in the pace in which
    calls were made, they do not come in crowds either.
    """

    def __init__(self, at_once: int = STEPS_AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._round_ends = False

    async def step(self) -> None:
        """Returns when the next step may begin."""
        loop = asyncio.get_running_loop()
        if not self._round_ends:
            self._round_ends = True
            loop.call_soon(self._next_round, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        await place

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._at_once
        while self._waiting and self._left:
            place = self._waiting.popleft()
            # One that was cancelled in the queue takes nobody's place.
            if not place.done():
                place.set_result(None)
                self._left -= 1
        self._round_ends = bool(self._waiting)
        if self._round_ends:
            loop.call_soon(self._next_round, loop)


class PacedClient(ServiceClient):
    """A client of a service that episodes wait for: what leads to a call, and what follows from its answer, is a step each.

    GET is not held up: only health checks use it.
    """

    def __init__(self, name: str, base_url: str, pace: Pace, *, timeout_s: float = 30.0, retry_s: float = 0.0) -> None:
        super().__init__(name, base_url, timeout_s=timeout_s, retry_s=retry_s)
        self._pace = pace

    async def request_full(self, method: str, path: str, **kwargs: Any) -> tuple[bytes, Mapping[str, str]]:
        """As `ServiceClient.request_full`, in the common pace."""
        if method == "GET":
            return await super().request_full(method, path, **kwargs)
        await self._pace.step()
        answer = await super().request_full(method, path, **kwargs)
        await self._pace.step()
        return answer
