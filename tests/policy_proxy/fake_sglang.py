"""A fake SGLang server: the real HTTP surface, scripted tokens, every token labelled with the version that was loaded when it was made."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Script = Callable[[list[int]], list[int]]


def logprob_of(token: int) -> float:
    return -((token % 7) / 10 + 0.0625)


@dataclass
class Exchange:
    """One /generate as the server saw it."""

    rid: str
    input_ids: list[int]
    params: dict[str, Any]
    output_ids: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    finish: str = ""


@dataclass
class FakeSglang:
    """State and knobs; ``script`` maps prompt ids to the output that belongs to them (end-of-turn token included)."""

    script: Script
    version: str = "0"
    model_path: str = ""
    token_delay_s: float = 0.0
    paused: bool = False
    with_spans: bool = True
    with_version: bool = True
    fail_update: str = ""
    """Answer updates with this message and success false."""
    lie_about_update: bool = False
    """Say that an update succeeded and keep the old weights."""
    stall_update: bool = False
    stall_generate: bool = False
    answer_status: int = 200
    garbage: bool = False
    exchanges: list[Exchange] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    control: list[str] = field(default_factory=list)
    control_keys: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    """Request ids that /abort_request named."""
    plans: list[tuple[list[int], list[int]]] = field(default_factory=list)
    running: dict[str, bool] = field(default_factory=dict)
    """rid -> whether it has been aborted."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/generate", self.generate, methods=["POST"]),
                Route("/model_info", self.model_info),
                Route("/pause_generation", self.pause, methods=["POST"]),
                Route("/abort_request", self.abort, methods=["POST"]),
                Route("/continue_generation", self.resume, methods=["POST"]),
                Route("/update_weights_from_disk", self.update, methods=["POST"]),
            ]
        )

    def restart(self, version: str) -> None:
        """What a restart of the process does to it: other weights, nothing paused."""
        self.version, self.paused = version, False

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
        if self.garbage:
            return Response(b"<html>", media_type="text/html")
        if self.answer_status != 200:
            return JSONResponse({"error": {"message": "no"}}, self.answer_status)
        exchange = Exchange(body["rid"], body["input_ids"], body["sampling_params"])
        assert body["return_logprob"] is True
        self.exchanges.append(exchange)
        self.running[exchange.rid] = False
        try:
            await self._produce(exchange)
        finally:
            del self.running[exchange.rid]
        return self._answer(exchange)

    async def _produce(self, exchange: Exchange) -> None:
        while (self.paused or self.stall_generate) and not self.running[exchange.rid]:  # noqa: ASYNC110 - knobs of the test's thread
            await asyncio.sleep(0.005)
        wanted = self.planned(exchange.input_ids)
        for token in wanted[: exchange.params["max_new_tokens"]]:
            await asyncio.sleep(self.token_delay_s)
            if self.running[exchange.rid]:
                exchange.finish = "abort"
                return
            exchange.output_ids.append(token)
            exchange.versions.append(self.version)
            if token in exchange.params["stop_token_ids"]:
                exchange.finish = "stop"
                return
        exchange.finish = "length"

    def _answer(self, exchange: Exchange) -> Response:
        meta: dict[str, Any] = {
            "id": exchange.rid,
            "finish_reason": {"type": exchange.finish},
            "prompt_tokens": len(exchange.input_ids),
            "completion_tokens": len(exchange.output_ids),
            "cached_tokens": 0,
            "output_token_logprobs": [[logprob_of(token), token, None] for token in exchange.output_ids],
        }
        if self.with_version:
            meta["weight_version"] = self.version
        if self.with_spans:
            meta["weight_versions"] = self._spans(exchange.versions)
        return JSONResponse({"text": "", "output_ids": exchange.output_ids, "meta_info": meta})

    @staticmethod
    def _spans(versions: list[str]) -> list[dict[str, Any]]:
        spans: list[dict[str, Any]] = []
        for index, version in enumerate(versions):
            if spans and spans[-1]["version"] == version:
                spans[-1]["end"] = index + 1
            else:
                spans.append({"version": version, "start": index, "end": index + 1})
        return spans

    async def model_info(self, request: Request) -> Response:
        return JSONResponse({"model_path": self.model_path, "weight_version": self.version})

    async def pause(self, request: Request) -> Response:
        self.control.append("pause")
        self.control_keys.append(request.headers.get("authorization", ""))
        assert (await request.json())["mode"] == "abort"
        self.paused = True
        self._abort_all()
        return JSONResponse({"status": "ok"})

    async def resume(self, request: Request) -> Response:
        self.control.append("continue")
        self.paused = False
        return JSONResponse({"status": "ok"})

    async def update(self, request: Request) -> Response:
        body = await request.json()
        self.control.append("update")
        self.updates.append(body)
        while self.stall_update:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self.fail_update:
            return JSONResponse({"success": False, "message": self.fail_update}, 400)
        if body["abort_all_requests"]:
            self._abort_all()
        if not self.lie_about_update:
            self.version, self.model_path = body["weight_version"], body["model_path"]
        return JSONResponse({"success": True, "message": "ok"})

    async def abort(self, request: Request) -> Response:
        rid = (await request.json())["rid"]
        self.aborted.append(rid)
        if rid in self.running:
            self.running[rid] = True
        return Response(b"")

    def _abort_all(self) -> None:
        for rid in self.running:
            self.running[rid] = True
