"""Owns how intents and records reach the store: those of all calls share a few messages (`services.common.group_commit`) of one request.

Refuses to answer for a line before the store has made it durable.
"""

from collections.abc import Sequence

from services.common.errors import RemoteError
from services.common.group_commit import Entry, GroupCommit
from services.common.http import Channel, ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log

MOST_BYTES = 4 * 2**20
"""Lines of other calls must not bring a message near the store's limit."""

Line = Entry[LogEntry, LogOutcome, Channel]


class CallLog:
    """The lines of all sessions of a proxy. ``retry_s``: how long a message is repeated; it may be, since a line counts once.

    One message is under way at a time: with more, each would carry fewer lines, and a message costs several times what a line does.
    """

    def __init__(self, client: ServiceClient, retry_s: float) -> None:
        self._client = client
        self._retry_s = retry_s
        self._channel = client.channel("/v1/call_log")
        self._commit = GroupCommit[LogEntry, LogOutcome, Channel]([self._channel], self._send, failure=RemoteError, most_bytes=MOST_BYTES)

    async def write(self, entry: LogEntry) -> int:
        """Returns once the line is durable, of an intent the calls on record. Raises `RemoteError` where it was refused or lost."""
        outcome = await self._commit.submit(entry, len(entry.record))
        if outcome.status != 200:
            raise RemoteError(self._client.name, outcome.status, outcome.code, outcome.detail)
        return outcome.n_calls

    def close(self) -> None:
        """Ends the request; lines under way fail."""
        self._channel.close()

    async def _send(self, channel: Channel, lines: Sequence[Line]) -> None:
        raw = await channel.ask(encode_log([line.item for line in lines]), retry_s=self._retry_s)
        try:
            outcomes = decode_outcomes(raw)
        except ValueError as error:
            raise RemoteError(self._client.name, 200, "bad_answer", str(error)) from error
        if len(outcomes) != len(lines):
            raise RemoteError(self._client.name, 200, "bad_answer", f"{len(outcomes)} outcomes for {len(lines)} lines")
        for line, outcome in zip(lines, outcomes, strict=True):
            line.tell(outcome)
