"""Owns background loops: a loop that fails is logged, waits and runs again; a service that stops cancels and awaits all of them.

This is the supervisor boundary, one of the three places where a broad ``except`` is right.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 0.5


class Background:
    """An async context manager that keeps named loops running until it is left."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Cancels every loop and waits until all of them are gone."""
        left = set(self._tasks.values())
        while left:
            # Again and again: `asyncio.wait_for` of Python 3.11 swallows a cancellation that meets its result.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        self._tasks.clear()

    def start(self, name: str, run: Callable[[], Awaitable[None]], *, restart_after_s: float = 1.0) -> None:
        """Runs ``run`` under supervision. A return ends the loop for good, an exception restarts it."""
        if name in self._tasks and not self._tasks[name].done():
            raise ValueError(f"background loop {name!r} runs already")
        self._tasks[name] = asyncio.create_task(self._supervise(name, run, restart_after_s), name=name)

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]], restart_after_s: float) -> None:
        while True:
            try:
                await run()
                return
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("background loop %s failed, again in %.1f s", name, restart_after_s)
            await asyncio.sleep(restart_after_s)
