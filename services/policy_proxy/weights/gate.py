"""Owns the admission gate: closed during a weight update, and open again by itself when its deadline has passed.

Refuses to stay closed: there is no way to close it without a deadline, so a crash or a bug in an update pauses nobody for ever.
"""

import asyncio
import time
from collections.abc import Callable


class Gate:
    """Calls `wait` before each request to a policy server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed_until = 0.0
        self._opened = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._clock() < self._closed_until

    def close(self, seconds: float) -> None:
        """Closes for at most ``seconds``."""
        self._closed_until = self._clock() + seconds
        self._opened.clear()

    def open(self) -> None:
        """Lets everybody go on."""
        self._closed_until = 0.0
        self._opened.set()

    async def wait(self) -> None:
        """Returns when the gate is open, at the latest when its deadline has passed."""
        while self.closed:
            try:
                async with asyncio.timeout(self._closed_until - self._clock()):
                    await self._opened.wait()
            except TimeoutError:
                continue
