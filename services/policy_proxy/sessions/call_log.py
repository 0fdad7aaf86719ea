"""Owns how intents and records reach the store: those of all calls share a few messages of one request (`services.common.channel`).

What comes in while a message is under way goes out together in the next one. With several messages at a time each would carry fewer
lines, and a message costs several times what a line does. Refuses to answer for a line before the store has made it durable.
"""

import asyncio
from collections import deque

from services.common.channel import Channel
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log

MOST_BYTES = 4 * 2**20
"""Lines of other calls must not bring a message near the store's limit."""

Written = asyncio.Future[LogOutcome | RemoteError]
"""What became of a line. No outcome is an exception, so a line that nobody waits for any more needs nobody."""


class Line:
    """A line on its way."""

    __slots__ = ("entry", "written")

    def __init__(self, entry: LogEntry) -> None:
        self.entry = entry
        self.written: Written = asyncio.get_running_loop().create_future()

    def tell(self, outcome: LogOutcome | RemoteError) -> None:
        """Says what became of it."""
        if not self.written.done():
            self.written.set_result(outcome)


class CallLog:
    """The lines of all sessions of a proxy. ``retry_s``: how long a message is repeated; it may be, since a line counts once.

    While all is well nothing runs here between a line and its answer. `run` opens the request and sends again what had no answer.
    """

    def __init__(self, client: ServiceClient, retry_s: float) -> None:
        self._name = client.name
        self._retry_s = retry_s
        self._channel = Channel(client, "/v1/call_log")
        self._waiting: deque[Line] = deque()
        self._sent: list[Line] = []
        self._stuck = asyncio.Event()

    @property
    def flows(self) -> bool:
        """Whether lines are answered at once, as far as is known."""
        return not self._stuck.is_set()

    def write(self, entry: LogEntry) -> Written:
        """Sends a line; the outcome is there once it is durable, was refused or got lost."""
        line = Line(entry)
        self._waiting.append(line)
        if not self._sent:
            self._send()
        return line.written

    async def run(self) -> None:
        """Helps wherever lines are stuck, for as long as the service runs."""
        try:
            while True:
                await self._stuck.wait()
                await self._resend()
        finally:
            self._channel.close()

    def _send(self) -> None:
        """Sends what waits as one message; called where none is under way."""
        n_bytes = 0
        while self._waiting and n_bytes < MOST_BYTES:
            line = self._waiting.popleft()
            if not line.written.done():
                self._sent.append(line)
                n_bytes += len(line.entry.record)
        if not self._sent:
            return
        if self._channel.open:
            self._channel.send(self._message(), self._answered)
        else:
            self._stuck.set()

    def _message(self) -> bytes:
        return encode_log([line.entry for line in self._sent])

    def _answered(self, answer: bytes | RemoteError) -> None:
        if isinstance(answer, RemoteError):
            self._stuck.set()
        else:
            self._finish(answer)

    async def _resend(self) -> None:
        try:
            answer = await self._channel.ask(self._message(), retry_s=self._retry_s)
        except RemoteError as error:
            answer = error
        self._stuck.clear()
        self._finish(answer)

    def _finish(self, answer: bytes | RemoteError) -> None:
        sent, self._sent = self._sent, []
        outcomes = answer if isinstance(answer, RemoteError) else self._outcomes(answer, len(sent))
        for place, line in enumerate(sent):
            line.tell(outcomes if isinstance(outcomes, RemoteError) else outcomes[place])
        self._send()

    def _outcomes(self, answer: bytes, n_lines: int) -> list[LogOutcome] | RemoteError:
        try:
            outcomes = decode_outcomes(answer)
        except ValueError as error:
            return RemoteError(self._name, 200, "bad_answer", str(error))
        if len(outcomes) != n_lines:
            return RemoteError(self._name, 200, "bad_answer", f"{len(outcomes)} outcomes for {n_lines} lines")
        return outcomes
