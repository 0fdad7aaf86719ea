"""Owns reading the event stream of a trial. The scripts write it, at the edges they make."""

from dataclasses import dataclass
from typing import Any

import orjson

from services.trajectory_store.redis_store.database import Database

READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Event:
    """One entry."""

    event_id: str
    """Of the stream; events are ordered by it."""
    name: str
    fields: dict[str, Any]


class Events:
    """What happened, newest about 10,000 entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, event_id: str) -> list[Event]:
        """What follows an event, oldest first, at most 500."""
        rows = await self._database.command("XRANGE", self._database.keys.events, f"({event_id}", "+", "COUNT", READ_AT_ONCE)
        return [_event(event_id, values[1]) for event_id, values in rows]

    async def ends(self) -> tuple[str, str]:
        """(id of the oldest event that is kept, of the newest); "0-0" where there is none."""
        key = self._database.keys.events
        oldest = await self._database.command("XRANGE", key, "-", "+", "COUNT", 1)
        newest = await self._database.command("XREVRANGE", key, "+", "-", "COUNT", 1)
        return (oldest[0][0].decode(), newest[0][0].decode()) if oldest else ("0-0", "0-0")


def _event(event_id: bytes, body: bytes) -> Event:
    fields: dict[str, Any] = orjson.loads(body)
    return Event(event_id.decode(), fields.pop("event"), fields)
