"""A fake SGLang server: the real HTTP surface, scripted tokens, every token labelled with the version that was loaded when it was made.

What it does in each pause mode, and what its streams look like, is what SGLang 0.5.23 does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Script = Callable[[list[int]], list[int]]
Json = dict[str, Any]
TICK_S = 0.005


def logprob_of(token: int) -> float:
    return -((token % 7) / 10 + 0.0625)


def top_of(token: int, n: int) -> list[list[Any]]:
    return [[logprob_of(token) - rank, token + rank, None] for rank in range(n)]


@dataclass
class Exchange:
    """One generation as the server saw it."""

    rid: str
    input_ids: list[int]
    params: Json
    body: Json = field(default_factory=dict)
    output_ids: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    finish: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    matched: str = ""
    """The stop string that ended it."""


@dataclass
class FakeSglang:
    """State and knobs; ``script`` maps prompt ids to the output that belongs to them (end-of-turn token included)."""

    script: Script
    version: str = "0"
    model_path: str = ""
    token_delay_s: float = 0.0
    paused: bool = False
    pause_mode: str = ""
    with_spans: bool = True
    with_version: bool = True
    incremental: bool = False
    """Streams only what is new, as with --incremental-streaming-output."""
    fail_update: str = ""
    """Answer updates with this message and success false."""
    lie_about_update: bool = False
    """Say that an update succeeded and keep the old weights."""
    stall_update: bool = False
    stall_generate: bool = False
    stall_control: str = ""
    """This control route never answers."""
    stall_if: Callable[[], bool] = lambda: True
    """Asked when a request to `stall_control` comes: whether it is the one that is meant."""
    stalled: str = ""
    """The control route that has last been made to wait."""
    stall_after: int = -1
    """A generation goes silent after so many tokens."""
    drop_after: int = -1
    """Every connection is cut when a generation has so many tokens; once."""
    garbage_after: int = -1
    """A stream turns into nonsense after so many tokens; once."""
    drop: Callable[[], None] | None = None
    decode: Callable[[list[int]], str] | None = None
    """Needed for stop strings."""
    answer_status: int = 200
    garbage: bool = False
    api_key: str = ""
    queued: int = 0
    """Requests that /v1/loads says are waiting."""
    tp_size: int = 1
    session_open: bool = False
    """Between begin_weight_update and end_weight_update."""
    exchanges: list[Exchange] = field(default_factory=list)
    updates: list[Json] = field(default_factory=list)
    received: list[Json] = field(default_factory=list)
    groups: list[Json] = field(default_factory=list)
    control: list[str] = field(default_factory=list)
    control_keys: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    """Request ids that /abort_request named."""
    plans: list[tuple[list[int], list[int]]] = field(default_factory=list)
    running: dict[str, bool] = field(default_factory=dict)
    """rid -> whether it has been aborted."""

    def app(self) -> Starlette:
        control = {
            "/pause_generation": self.pause,
            "/abort_request": self.abort,
            "/continue_generation": self.resume,
            "/update_weights_from_disk": self.update,
            "/update_weight_version": self.relabel,
            "/init_weights_update_group": self.join,
            "/destroy_weights_update_group": self.leave,
            "/begin_weight_update": self.begin,
            "/end_weight_update": self.end,
            "/update_weights_from_distributed": self.receive,
        }
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/model_info", self.model_info),
                Route("/server_info", self.server_info),
                Route("/v1/loads", self.loads),
                Route("/ready", self.ready),
                *[Route(path, self._controlled(path, handler), methods=["POST"]) for path, handler in control.items()],
            ]
        )

    def restart(self, version: str) -> None:
        """What a restart of the process does to it: other weights, nothing paused."""
        self.version, self.paused, self.session_open = version, False, False

    def planned(self, input_ids: list[int]) -> list[int]:
        """The rest of the output that belongs to a prompt, also where part of it has been sent back as prompt."""
        for prompt, output in reversed(self.plans):
            done = len(input_ids) - len(prompt)
            if 0 < done < len(output) and input_ids[: len(prompt)] == prompt and input_ids[len(prompt) :] == output[:done]:
                return output[done:]
        output = self.script(input_ids)
        self.plans.append((input_ids, output))
        return output

    async def generate(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if refusal := self._refusal(request):
            return refusal
        exchange = self._begin(request, body, body["sampling_params"])
        assert body["return_logprob"] is True
        if body["stream"]:
            return StreamingResponse(self._events(exchange), media_type="text/event-stream")
        await self._to_the_end(exchange)
        return JSONResponse(self._answer(exchange))

    async def chat(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if refusal := self._refusal(request):
            return refusal
        assert body["logprobs"] and body["return_token_ids"] and body["return_prompt_token_ids"] and body["return_meta_info"]
        assert not body["stream"], "return_token_ids is not supported with streaming"
        exchange = self._begin(request, body, body | {"max_new_tokens": body["max_completion_tokens"]})
        await self._to_the_end(exchange)
        answer = self._answer(exchange)
        choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": exchange.finish}
        choice |= {"prompt_token_ids": exchange.input_ids, "response_token_ids": answer["output_ids"], "meta_info": answer["meta_info"]}
        return JSONResponse({"id": exchange.rid, "choices": [choice]})

    def _refusal(self, request: Request) -> Response | None:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self.garbage:
            return Response(b"<html>", media_type="text/html")
        if self.answer_status != 200:
            return JSONResponse({"error": {"message": "no"}}, self.answer_status)
        return None

    def _begin(self, request: Request, body: Json, params: Json) -> Exchange:
        exchange = Exchange(body["rid"], body["input_ids"], params, body, headers=dict(request.headers))
        self.exchanges.append(exchange)
        self.running[exchange.rid] = False
        return exchange

    async def _to_the_end(self, exchange: Exchange) -> None:
        async for _ in self._tokens(exchange):
            pass

    async def _events(self, exchange: Exchange) -> AsyncIterator[bytes]:
        sent = 0
        async for _ in self._tokens(exchange):
            if len(exchange.output_ids) == self.garbage_after:
                self.garbage_after = -1
                yield b"data: {nonsense\n\n"
            yield self._event(exchange, sent)
            sent = len(exchange.output_ids)
        yield self._event(exchange, sent)
        yield b"data: [DONE]\n\n"

    def _event(self, exchange: Exchange, sent: int) -> bytes:
        answer = self._answer(exchange)
        meta = answer["meta_info"]
        if not exchange.finish:
            meta["finish_reason"] = None
            meta.pop("weight_versions", None)
        if self.incremental:
            for name in ("output_token_logprobs", "output_top_logprobs"):
                if name in meta:
                    meta[name] = meta[name][sent:]
            answer["output_ids"] = answer["output_ids"][sent:]
        return b"data: " + orjson.dumps(answer) + b"\n\n"

    async def _tokens(self, exchange: Exchange) -> AsyncIterator[int]:
        """Makes tokens one by one until the generation has ended, in whatever way."""
        try:
            await self._while(lambda: self.paused or self.stall_generate, exchange)
            for token in self.planned(exchange.input_ids)[: exchange.params["max_new_tokens"]]:
                if self.token_delay_s:
                    await asyncio.sleep(self.token_delay_s)
                await self._while(lambda: self.paused or 0 <= self.stall_after <= len(exchange.output_ids), exchange)
                if self.running[exchange.rid]:
                    exchange.finish = "abort"
                    return
                exchange.output_ids.append(token)
                exchange.versions.append(self.version)
                self._drop_at(len(exchange.output_ids))
                exchange.matched = self._matched(exchange)
                if token in exchange.params["stop_token_ids"] or exchange.matched:
                    exchange.finish = "stop"
                    return
                yield token
            exchange.finish = "length"
        finally:
            del self.running[exchange.rid]

    def _matched(self, exchange: Exchange) -> str:
        if self.decode is None or "stop" not in exchange.params:
            return ""
        said = self.decode(exchange.output_ids)
        return next((stop for stop in exchange.params["stop"] if stop in said), "")

    async def _while(self, condition: Callable[[], bool], exchange: Exchange) -> None:
        while condition() and not self.running[exchange.rid]:  # noqa: ASYNC110 - knobs of the test's thread
            await asyncio.sleep(TICK_S)

    def _drop_at(self, n_tokens: int) -> None:
        if n_tokens == self.drop_after:
            self.drop_after = -1
            assert self.drop is not None
            self.drop()

    def _answer(self, exchange: Exchange) -> Json:
        finish: Json = {"type": exchange.finish}
        if exchange.finish == "stop":
            finish["matched"] = exchange.matched or exchange.output_ids[-1]
        meta: Json = {
            "id": exchange.rid,
            "finish_reason": finish,
            "prompt_tokens": len(exchange.input_ids),
            "completion_tokens": len(exchange.output_ids),
            "cached_tokens": len(exchange.input_ids) // 2,
            "output_token_logprobs": [[logprob_of(token), token, None] for token in exchange.output_ids],
        }
        if n_top := exchange.body.get("top_logprobs_num") or exchange.body.get("top_logprobs"):
            meta["output_top_logprobs"] = [top_of(token, n_top) for token in exchange.output_ids]
        if self.with_version:
            meta["weight_version"] = self.version
        if self.with_spans:
            meta["weight_versions"] = self._spans(exchange.versions)
        return {"text": "", "output_ids": list(exchange.output_ids), "meta_info": meta}

    @staticmethod
    def _spans(versions: list[str]) -> list[Json]:
        spans: list[Json] = []
        for index, version in enumerate(versions):
            if spans and spans[-1]["version"] == version:
                spans[-1]["end"] = index + 1
            else:
                spans.append({"version": version, "start": index, "end": index + 1})
        return spans

    async def model_info(self, request: Request) -> Response:
        return JSONResponse({"model_path": self.model_path, "weight_version": self.version})

    async def server_info(self, request: Request) -> Response:
        return JSONResponse({"tp_size": self.tp_size, "pp_size": 1, "dp_size": 1})

    async def loads(self, request: Request) -> Response:
        rank = {"dp_rank": 0, "num_running_reqs": len(self.running), "num_waiting_reqs": self.queued, "token_usage": 0.1}
        return JSONResponse({"loads": [rank]})

    async def ready(self, request: Request) -> Response:
        return Response(status_code=503 if self.paused else 200)

    def _controlled(self, path: str, handler: Callable[[Json], Response]) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            self.control_keys.append(request.headers.get("authorization", ""))
            body = orjson.loads(await request.body())
            self.control.append({"/continue_generation": "continue"}.get(path, path[1:].split("_")[0]))
            meant = self.stall_control == path and self.stall_if()
            while meant and self.stall_control == path:
                self.stalled = path
                await asyncio.sleep(0.01)
            if path == "/update_weights_from_disk":
                self.updates.append(body)
                while self.stall_update:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            return handler(body)

        return handle

    def pause(self, body: Json) -> Response:
        self.paused, self.pause_mode = True, body["mode"]
        if body["mode"] == "abort":
            self._abort_all()
        return JSONResponse({"status": "ok"})

    def resume(self, body: Json) -> Response:
        self.paused = False
        return JSONResponse({"status": "ok"})

    def update(self, body: Json) -> Response:
        if self.fail_update:
            return _done(self.fail_update)
        if body["abort_all_requests"]:
            self._abort_all()
        if body["flush_cache"] and self.pause_mode == "in_place" and self.paused and self.running:
            return _done("Weights were updated, but the cache was not flushed because requests are still running or queued.")
        if not self.lie_about_update:
            self.version, self.model_path = body["weight_version"], body["model_path"]
        return _done()

    def relabel(self, body: Json) -> Response:
        self.version = body["new_version"]
        return _done()

    def join(self, body: Json) -> Response:
        self.groups.append(body)
        return _done(self.fail_update)

    def leave(self, body: Json) -> Response:
        return _done("" if self.groups else "group not found")

    def begin(self, body: Json) -> Response:
        if self.session_open:
            return _done("a weight-update session is already open; call end_weight_update() first")
        self.session_open = True
        return _done()

    def end(self, body: Json) -> Response:
        was, self.session_open = self.session_open, False
        return _done("" if was else "no weight-update session is open")

    def receive(self, body: Json) -> Response:
        if not self.session_open:
            return _done("update_weights_from_distributed must run between begin_weight_update() and end_weight_update()")
        self.received.append(body)
        return _done(self.fail_update)

    def abort(self, body: Json) -> Response:
        if body.get("abort_all"):
            self._abort_all()
            return Response(b"")
        self.aborted.append(body["rid"])
        if body["rid"] in self.running:
            self.running[body["rid"]] = True
        return Response(b"")

    def _abort_all(self) -> None:
        for rid in self.running:
            self.running[rid] = True


def _done(problem: str = "") -> Response:
    return JSONResponse({"success": not problem, "message": problem or "ok"}, 400 if problem else 200)
