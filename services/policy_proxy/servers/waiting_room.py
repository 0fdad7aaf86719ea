"""Owns the queue of calls that wait for a place at a policy server: first come first served, bounded, one woken at a time.

Waking everybody for each place would cost the square of the queue. Refuses a call over the bound (`Busy`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from services.common.errors import Busy

T = TypeVar("T")
RETRY_AFTER_S = 2.0


class WaitingRoom:
    """``limit``: calls that may wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self) -> None:
        """Raises `Busy` where there is no room; for callers that want to know before they begin."""
        if len(self._waiting) >= self._limit:
            raise Busy(f"{len(self._waiting)} calls wait for a policy server, the limit of this proxy", retry_after_s=RETRY_AFTER_S)

    async def take(self, choose: Callable[[], T | None], *, under_way: bool = False) -> T:
        """What ``choose`` gives once it gives something; it is asked when a place may have become free. The caller bounds the wait.

        A call ``under_way`` has been admitted before: it is never refused and goes before the others.
        """
        if (under_way or not self._waiting) and (found := choose()) is not None:
            return found
        if not under_way:
            self.check()
        ticket = self._queue(self._waiting.appendleft if under_way else self._waiting.append)
        try:
            while True:
                await ticket
                if (found := choose()) is not None:
                    return found
                ticket = self._queue(self._waiting.appendleft)
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self.wake()

    def wake(self) -> None:
        """A place may be free: lets the first in the queue look. Who finds one wakes the next."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return

    def _queue(self, put: Callable[[asyncio.Future[None]], None]) -> asyncio.Future[None]:
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        put(ticket)
        return ticket
