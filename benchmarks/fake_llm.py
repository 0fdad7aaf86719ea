"""A fake for the episode benchmark: one process that answers as policy proxy, as user simulator and as plain OpenAI server, after a delay.

    python benchmarks/fake_llm.py --port N --latency SECONDS --tasks FILE

``--tasks`` is JSON: domain -> list of tasks in tau2's form. The replies come from `episode_scripts`; there is no model here. Sessions are
named ``b-<domain>-<index>-…``; on the plain OpenAI route the user's first message carries ``[domain/index]``. It is a raw ASGI application,
so that it costs little.
"""

import argparse
import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from episode_scripts import Json, agent_script, user_reply

SESSION = re.compile(r"/v1/sessions/b-([a-z_-]+)-(\d+)-")
KEY = re.compile(r"\[([a-z_-]+)/(\d+)\]")


class FakeLLM:
    """The ASGI application. ``in_flight`` is how many delayed answers wait now."""

    def __init__(self, tasks: dict[str, list[Json]], latency_s: float) -> None:
        self._scripts = {domain: [agent_script(task) for task in found] for domain, found in tasks.items()}
        self._latency_s = latency_s
        self._ids = itertools.count()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        path: str = scope["path"]
        chunks = bytearray()
        while True:
            event = await receive()
            chunks += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = dict(scope["headers"])
        if path.endswith("/sessions"):
            reply: Any = {"session_id": orjson.loads(bytes(chunks))["session_id"], "api_key": "key", "expires_at": 0.0}
        elif path.endswith("/seal"):
            reply = {"state": "sealed"}
        else:
            await asyncio.sleep(self._latency_s)
            reply = self._delayed(path, headers, bytes(chunks))
        answer = orjson.dumps(reply)
        start = [(b"content-type", b"application/json"), (b"x-policy-version", b"0"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": answer})

    def _delayed(self, path: str, headers: dict[bytes, bytes], body: bytes) -> Json:
        if path == "/healthz":
            return {"status": "ok"}
        if path == "/v1/turns":
            return self._user_turn(orjson.loads(body))
        session = SESSION.match(path)
        if session is not None:
            number = int(headers[b"idempotency-key"].rpartition(b"-")[2])
            return completion(self._scripts[session[1]][int(session[2])][number])
        return completion(self._openai(orjson.loads(body)))

    def _user_turn(self, body: Json) -> Json:
        said = user_reply(body["messages"][-1], "Hi, I need help.", next(self._ids))
        calls = [
            {"id": call["id"], "name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
            for call in said.get("tool_calls") or ()
        ]
        stop = "stop" if said["content"] == "###STOP###" else None
        return {"content": said["content"], "tool_calls": calls, "stop": stop, "fault": "ok", "detail": "", "attempts": 1}

    def _openai(self, body: Json) -> Json:
        """Upstream's agent and user, told apart by the scenario in the system message of the user's."""
        messages: list[Json] = body["messages"]
        system = messages[0]["content"]
        if "<scenario>" in system:
            key = KEY.search(system)
            last = messages[-1]
            seen = {"role": "tool" if last["role"] == "tool" else "assistant", "content": last.get("content")}
            return user_reply(seen, f"Hi, I need help. {key[0] if key else ''}", next(self._ids))
        key = next(found for message in messages if message["role"] == "user" and (found := KEY.search(message["content"] or "")))
        # The greeting is an assistant message too, but no call made it.
        number = sum(message["role"] == "assistant" for message in messages) - 1
        return self._scripts[key[1]][int(key[2])][number]


def completion(message: Json) -> Json:
    """A chat completion around a message."""
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice], "usage": usage}


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    arguments = parser.parse_args()
    app = FakeLLM(json.loads(arguments.tasks.read_text()), arguments.latency)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="error", lifespan="off", backlog=8192, timeout_keep_alive=75)


if __name__ == "__main__":
    main()
