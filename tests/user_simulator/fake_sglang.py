"""A stand-in for SGLang's OpenAI surface that answers, stalls, aborts and dies on demand: ``python fake_sglang.py PORT [COUNTER_FILE]``.

``POST /control {"mode": …}`` sets what the next completions do: "ok", "stall" (never answer), "abort" (finish_reason abort), "error" (500),
"die" (exit in the middle of the request); "times" limits it to so many requests. COUNTER_FILE counts starts; with FAKE_DIES=n in the
environment, the first n starts exit before they listen.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import uvicorn

Json = dict[str, Any]


class FakeSglang:
    """Raw ASGI, so that a process starts in a fraction of a second."""

    def __init__(self) -> None:
        self.mode, self.times = "ok", 0
        self.bodies: list[Json] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = await self.answer(scope["path"], orjson.loads(raw or b"{}"))
        payload = orjson.dumps(answer) if answer is not None else b""
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": payload})

    async def answer(self, path: str, body: Json) -> tuple[int, Any]:
        if path == "/health":
            return 200, None
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "fake", "object": "model", "created": 0, "owned_by": "sglang"}]}
        if path == "/control":
            self.mode, self.times = body["mode"], body.get("times", 10**9)
            return 200, {"seen": len(self.bodies)}
        if path == "/bodies":
            return 200, self.bodies
        return await self.complete(body)

    async def complete(self, body: Json) -> tuple[int, Any]:
        self.bodies.append(body)
        mode = self.mode if self.times > 0 else "ok"
        self.times -= 1
        if mode == "die":
            os._exit(7)
        if mode == "stall":
            await asyncio.sleep(3600)
        if mode == "error":
            return 500, {"object": "error", "message": "scheduler hit an exception", "type": "InternalServerError", "code": 500}
        message = {"role": "assistant", "content": f"My phone is broken, seed {body.get('seed')}.", "tool_calls": None}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "abort" if mode == "abort" else "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


def main() -> None:
    port, counter = int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    starts = 1
    if counter is not None:
        starts += int(counter.read_text() or 0) if counter.exists() else 0
        counter.write_text(str(starts))
    print(f"start {starts}", flush=True)
    if starts <= int(os.environ.get("FAKE_DIES", "0")):
        sys.exit(3)
    if os.environ.get("FAKE_DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    uvicorn.run(FakeSglang(), host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
