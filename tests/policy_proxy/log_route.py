"""The call log's route as a fake store serves it: message after message in one request, like the real one."""

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.common.frames import FrameReader, framed
from services.common.wire.call_log import LogEntry, decode_entries

Write = Callable[[list[LogEntry]], Awaitable[bytes | Response]]
"""The answer to the lines of one message, or an error, which ends the request."""


class LogRoute:
    """An ASGI application around what writes the lines. Counts its requests."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.n_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.n_requests += 1
        frames, started, more = FrameReader(2**30), False, True
        while more:
            part = await receive()
            more = part.get("more_body", False)
            for message in frames.feed(part.get("body", b"")):
                answer = await self._write(decode_entries(message))
                if isinstance(answer, Response) and not started:
                    await answer(scope, receive, send)
                    return
                if isinstance(answer, Response):
                    more = False
                    break
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    started = True
                await send({"type": "http.response.body", "body": framed(answer), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
