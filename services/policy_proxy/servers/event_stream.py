"""Owns splitting a server-sent event stream into its data. Refuses an event without end."""

from collections.abc import AsyncIterator

from services.common.errors import RemoteError

MAX_EVENT_BYTES = 64 << 20
"""A cumulative event of the longest completions is about 10 MB."""
DONE = b"[DONE]"


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The payload of each ``data:`` line, without the closing ``[DONE]``; SGLang writes one such line an event.

    Raises `RemoteError` for a line over `MAX_EVENT_BYTES`.
    """
    rest = bytearray()
    async for chunk in chunks:
        searched = len(rest)
        rest += chunk
        while (end := rest.find(b"\n", searched)) >= 0:
            line = bytes(rest[:end]).rstrip(b"\r")
            del rest[: end + 1]
            searched = 0
            if line.startswith(b"data:") and (data := line[5:].strip()) != DONE:
                yield data
        if len(rest) > MAX_EVENT_BYTES:
            raise RemoteError("policy_server", 200, "bad_answer", f"an event of over {MAX_EVENT_BYTES} bytes")
