"""Owns how a request that runs in the engine's thread is followed from an event loop: it is told that there is more, and reads it itself.

What came while nobody looked is one notice, so a slow reader costs the engine nothing.
"""

import asyncio


class Progress:
    """Of one request. Made in the loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        self._told = False

    def notify(self) -> None:
        """From the engine's thread: there is a new token, or the end."""
        if not self._told and not self._loop.is_closed():
            self._told = True
            self._loop.call_soon_threadsafe(self._more.set)

    async def wait(self) -> None:
        """Returns once there is something new since the last time; the caller bounds it by the life of its request."""
        await self._more.wait()
        self._more.clear()
        # Before anything is read: a token after the reading must be a notice of its own.
        self._told = False
