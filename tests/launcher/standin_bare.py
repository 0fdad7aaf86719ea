"""The smallest service there is: ``python standin_bare.py PORT`` answers every GET with 200, and ``POST /block`` hangs its event loop."""

import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """ASGI."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    if scope["path"] == "/block":
        time.sleep(60)  # noqa: ASYNC251
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
