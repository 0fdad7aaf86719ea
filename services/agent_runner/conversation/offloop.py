"""Owns keeping long environment code off the event loop: short code runs where it is, the rest in a thread with a deadline.

Refuses to wait for a thread that is over its deadline; Python cannot stop one, so it is left to itself.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stuck(Exception):
    """Environment code did not come back in time."""


async def off_loop(inline: bool, timeout_s: float, what: str, work: Callable[[], T]) -> T:
    """The result of ``work``. Raises `Stuck`, which names ``what``, and whatever ``work`` raises."""
    if inline:
        return work()
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await asyncio.to_thread(work)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Stuck(f"timeout: {what} took over {timeout_s:g} s") from error
