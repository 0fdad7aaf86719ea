"""Owns how intents and records reach the store: those of all calls share a few requests (`services.common.group_commit`).

Refuses to answer for a line before the store has made it durable.
"""

from collections.abc import Sequence

from services.common.errors import RemoteError
from services.common.group_commit import Entry, GroupCommit
from services.common.http import MSGPACK, ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log

LANES = 1
"""Requests at a time. With more, each would carry fewer lines, and a request costs several times what a line does."""
MOST_BYTES = 4 * 2**20
"""Lines of other calls must not bring a request near the store's limit for a body."""


class CallLog:
    """The lines of all sessions of a proxy. ``retry_s``: how long a request is repeated; it may be, since a line counts once."""

    def __init__(self, client: ServiceClient, retry_s: float) -> None:
        self._client = client
        self._retry_s = retry_s
        self._commit = GroupCommit[LogEntry, LogOutcome, None]([None] * LANES, self._send, failure=RemoteError, most_bytes=MOST_BYTES)

    async def write(self, entry: LogEntry) -> int:
        """Returns once the line is durable, of an intent the calls on record. Raises `RemoteError` where it was refused or lost."""
        outcome = await self._commit.submit(entry, len(entry.record))
        if outcome.status != 200:
            raise RemoteError(self._client.name, outcome.status, outcome.code, outcome.detail)
        return outcome.n_calls

    async def _send(self, lane: None, lines: Sequence[Entry[LogEntry, LogOutcome, None]]) -> None:
        body = encode_log([line.item for line in lines])
        raw = await self._client.request("POST", "/v1/call_log", data=body, content_type=MSGPACK, retry_s=self._retry_s)
        try:
            outcomes = decode_outcomes(raw)
        except ValueError as error:
            raise RemoteError(self._client.name, 200, "bad_answer", str(error)) from error
        if len(outcomes) != len(lines):
            raise RemoteError(self._client.name, 200, "bad_answer", f"{len(outcomes)} outcomes for {len(lines)} lines")
        for line, outcome in zip(lines, outcomes, strict=True):
            line.tell(outcome)
