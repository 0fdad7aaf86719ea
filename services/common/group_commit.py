"""Owns group commit: what many callers want sent shares a few lanes; what comes in while all are busy goes out together in the next round.

No task runs for it: who finds a lane free sends for everybody who waits, and hands the lane on. Refuses to know what a lane is and how a
round travels; that is ``send``'s part. Entries may be sent again where a round broke off, so each must count once however often it is sent.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Lane = TypeVar("Lane")


@dataclass(frozen=True, slots=True)
class Turn(Generic[Lane]):
    """Says to who waits that the lane is theirs and that they send the next round."""

    lane: Lane


class Entry(Generic[Item, Outcome, Lane]):
    """What one caller wants sent. ``future`` brings its outcome, in a tuple to tell it from its turn to send."""

    __slots__ = ("future", "item", "n_bytes")

    def __init__(self, item: Item, n_bytes: int) -> None:
        self.item = item
        self.n_bytes = n_bytes
        self.future: asyncio.Future[tuple[Outcome] | Turn[Lane]] = asyncio.get_running_loop().create_future()

    @property
    def done(self) -> bool:
        """Whether it has its outcome, or nobody waits for one any more."""
        return self.future.done()

    def tell(self, outcome: Outcome) -> None:
        """Gives it its outcome."""
        self.bring((outcome,))

    def bring(self, what: tuple[Outcome] | Turn[Lane]) -> None:
        """Wakes who waits for it."""
        if not self.future.done():
            self.future.set_result(what)

    def fail(self, error: Exception) -> None:
        """Ends it without one."""
        if not self.future.done():
            self.future.set_exception(error)


class GroupCommit(Generic[Item, Outcome, Lane]):
    """Sends for many callers over a few lanes.

    ``send`` tells each of its entries its outcome. What it raises of type ``failure`` ends all entries that have none yet; anything else is
    the leader's own, and the others are sent again. A round ends with the entry that takes it over ``most_bytes``.
    """

    def __init__(
        self,
        lanes: Iterable[Lane],
        send: Callable[[Lane, Sequence[Entry[Item, Outcome, Lane]]], Awaitable[None]],
        *,
        failure: type[Exception],
        most_bytes: int,
    ) -> None:
        self._free = list(lanes)
        self._send = send
        self._failure = failure
        self._most_bytes = most_bytes
        self._waiting: deque[Entry[Item, Outcome, Lane]] = deque()

    async def submit(self, item: Item, n_bytes: int) -> Outcome:
        """The outcome of an item. Raises what ``send`` raised."""
        mine: Entry[Item, Outcome, Lane] = Entry(item, n_bytes)
        if self._free:
            return await self._lead(self._free.pop(), mine)
        self._waiting.append(mine)
        told = await self._told(mine)
        if not isinstance(told, Turn):
            return told[0]
        mine.future = asyncio.get_running_loop().create_future()
        return await self._lead(told.lane, mine)

    async def _told(self, mine: Entry[Item, Outcome, Lane]) -> tuple[Outcome] | Turn[Lane]:
        try:
            return await mine.future
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.future.cancelled() and mine.future.exception() is None and isinstance(turn := mine.future.result(), Turn):
                self._hand_on(turn.lane)
            raise

    async def _lead(self, lane: Lane, mine: Entry[Item, Outcome, Lane]) -> Outcome:
        """Sends one round for everybody who waits now."""
        entries = [mine, *self._taken(mine.n_bytes)]
        try:
            await self._send(lane, entries)
        except self._failure as error:
            for entry in entries:
                entry.fail(error)
        finally:
            self._waiting.extendleft(entry for entry in reversed(entries[1:]) if not entry.done)
            self._hand_on(lane)
        outcome = mine.future.result()
        assert not isinstance(outcome, Turn)
        return outcome[0]

    def _taken(self, n_bytes: int) -> list[Entry[Item, Outcome, Lane]]:
        taken: list[Entry[Item, Outcome, Lane]] = []
        while self._waiting and n_bytes < self._most_bytes:
            taken.append(self._waiting.popleft())
            n_bytes += taken[-1].n_bytes
        return taken

    def _hand_on(self, lane: Lane) -> None:
        """Gives a lane to the first who waits and is still there."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done:
                following.bring(Turn(lane))
                return
        self._free.append(lane)
