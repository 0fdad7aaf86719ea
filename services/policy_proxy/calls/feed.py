"""Owns handing the parts of an answer from the call that makes them to the requests that stream them.

A feed keeps every part from the first on, so that a request that joins a call in flight gets the whole answer. It is bounded by the
answer itself, which the call holds anyway. Refuses to know what a part means.
"""

import asyncio
from collections.abc import Iterable

from services.policy_proxy.chat.answer import Part


class Feed:
    """An append-only log of parts, with waiting."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._changed = asyncio.Event()

    def put(self, parts: Iterable[Part]) -> None:
        """Adds parts."""
        before = len(self.parts)
        self.parts += parts
        if len(self.parts) > before:
            self.wake()

    def wake(self) -> None:
        """Lets everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Waits for the next change; False where none came in time."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True
