"""Owns how intents and records reach the store: those of all calls share a few requests (group commit).

While one request is under way, what comes in meanwhile goes out together in the next. No task runs for it: who finds a lane free sends for
everybody who waits, and hands the lane on. Refuses to answer for a line before the store has made it durable.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from services.common.errors import RemoteError
from services.common.http import MSGPACK, ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log

LANES = 2
"""While the store writes what one request brought, the next one is on its way."""
MOST_BYTES = 4 * 2**20
"""A request ends with the line that takes it over this: lines of other calls must not bring it near the store's limit for a body."""


class _Line:
    """A line that waits. Its future brings its outcome, or None where it is now its caller's turn to send."""

    __slots__ = ("entry", "future")

    def __init__(self, entry: LogEntry) -> None:
        self.entry = entry
        self.future: asyncio.Future[LogOutcome | None] = asyncio.get_running_loop().create_future()


class CallLog:
    """The lines of all sessions of a proxy. ``retry_s``: how long a request is repeated; it may be, since a line counts once."""

    def __init__(self, client: ServiceClient, retry_s: float) -> None:
        self._client = client
        self._retry_s = retry_s
        self._waiting: deque[_Line] = deque()
        self._free = LANES

    async def write(self, entry: LogEntry) -> int:
        """Returns once the line is durable, of an intent the calls on record. Raises `RemoteError` where it was refused or lost."""
        mine = _Line(entry)
        outcome = None
        if self._free:
            self._free -= 1
        else:
            self._waiting.append(mine)
            outcome = await self._told(mine)
        if outcome is None:
            outcome = await self._lead(mine)
        if outcome.status != 200:
            raise RemoteError(self._client.name, outcome.status, outcome.code, outcome.detail)
        return outcome.n_calls

    async def _told(self, mine: _Line) -> LogOutcome | None:
        try:
            return await mine.future
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.future.cancelled() and mine.future.exception() is None and mine.future.result() is None:
                self._hand_on()
            raise

    async def _lead(self, mine: _Line) -> LogOutcome:
        """Sends one request for everybody who waits now."""
        others = self._taken(len(mine.entry.record))
        told = False
        try:
            outcomes = await self._send([mine.entry, *(line.entry for line in others)])
            _tell(others, outcomes[1:])
            told = True
            return outcomes[0]
        except RemoteError as error:
            _fail(others, error)
            told = True
            raise
        finally:
            # Where the leader was cancelled, the others lead.
            if not told:
                self._waiting.extendleft(line for line in reversed(others) if not line.future.done())
            self._hand_on()

    def _taken(self, n_bytes: int) -> list[_Line]:
        lines: list[_Line] = []
        while self._waiting and n_bytes < MOST_BYTES:
            lines.append(self._waiting.popleft())
            n_bytes += len(lines[-1].entry.record)
        return lines

    async def _send(self, entries: list[LogEntry]) -> list[LogOutcome]:
        body = encode_log(entries)
        raw = await self._client.request("POST", "/v1/call_log", data=body, content_type=MSGPACK, retry_s=self._retry_s)
        try:
            outcomes = decode_outcomes(raw)
        except ValueError as error:
            raise RemoteError(self._client.name, 200, "bad_answer", str(error)) from error
        if len(outcomes) != len(entries):
            raise RemoteError(self._client.name, 200, "bad_answer", f"{len(outcomes)} outcomes for {len(entries)} lines")
        return outcomes

    def _hand_on(self) -> None:
        """Gives the lane to the first who waits and is still there."""
        while self._waiting:
            following = self._waiting.popleft()
            if not following.future.done():
                following.future.set_result(None)
                return
        self._free += 1


def _tell(lines: Sequence[_Line], outcomes: Sequence[LogOutcome]) -> None:
    for line, outcome in zip(lines, outcomes, strict=True):
        if not line.future.done():
            line.future.set_result(outcome)


def _fail(lines: Sequence[_Line], error: RemoteError) -> None:
    for line in lines:
        if not line.future.done():
            line.future.set_exception(error)
