"""Owns a deadline for what happens thousands of times a second and is hardly ever late; `asyncio.timeout` costs more than the message sent.

Its timer stays where it was while everything is in time, and looks again when it rings. Refuses several things at a time.
"""

import asyncio
from collections.abc import Callable
from math import inf


class Deadline:
    """Calls ``expire`` where ``seconds`` pass between `start` and `stop`."""

    def __init__(self, seconds: float, expire: Callable[[], None]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._at = inf
        self._timer: asyncio.TimerHandle | None = None
        self.passed = False
        """Whether that happened since the last start."""

    def start(self) -> None:
        """Begins to count."""
        loop = asyncio.get_running_loop()
        self.passed = False
        self._at = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._ring, loop)

    def stop(self) -> None:
        """Whatever it was has ended."""
        self._at = inf

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        left = self._at - loop.time()
        if left <= 0:
            self.passed = True
            self._expire()
        elif left < inf:
            self._timer = loop.call_later(left, self._ring, loop)
