"""Owns waiting for work: requests that wait are woken when this process changed something, and look by themselves now and then.

A bell holds no state worth keeping: after a kill -9 the waiting requests are gone and their clients ask again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_AGAIN_S = 0.25
"""How long a change made by another process can stay unnoticed."""


class Bell:
    """Wakes everybody who waits."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wakes all who wait now; who comes later waits for the next ring."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def until(self, look: Callable[[], Awaitable[T | None]], wait_s: float, gone: Callable[[], Awaitable[bool]]) -> T | None:
        """The first answer of ``look`` that is not None, or None after ``wait_s`` or once the client is gone.

        A client that went away must not be given work: nobody would do it until its lease expires.
        """
        end = time.monotonic() + wait_s
        while True:
            rung = self._rung
            if (found := await look()) is not None:
                return found
            left = end - time.monotonic()
            if left <= 0:
                return None
            try:
                async with asyncio.timeout(min(left, LOOK_AGAIN_S)):
                    await rung.wait()
            except TimeoutError:
                pass
            if await gone():
                return None
