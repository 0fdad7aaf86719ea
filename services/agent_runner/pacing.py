"""Owns how late the event loop runs, and how episodes share it: in what pace they begin, and in what pace their turns do.

One process plays thousands of episodes on one loop. What is due at the same instant, such as the start of a large lease or the answers
that came in while a core was busy, would hold up every other episode, the heartbeat and the health routes; so it is spread. Refuses to
limit how many episodes run: that is the worker's capacity.
"""

import asyncio
import time
from collections import deque

PROBE_EVERY_S = 0.02
PROBES_KEPT = 3000
"""A minute."""
SHORTEST_GAP_S, LONGEST_GAP_S = 0.001, 0.01
"""Between the starts of two episodes: 1,000 a second on an idle loop, 100 on one that is late anyway."""
TURNS_AT_ONCE = 8
"""Turns begun per round of the event loop, about 20 ms of work with what their answers cause."""


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
    """Lets so many turns begin per round of the event loop, first come first served; nobody waits on a loop that is idle.

    Where more is due than one core can do, turns queue up here and not in the loop. And since answers come back in the pace in which
    calls were made, they do not come in crowds either.
    """

    def __init__(self, at_once: int = TURNS_AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._round_ends = False

    async def turn(self) -> None:
        """Returns when the next turn may begin."""
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
