"""Owns the HTTP routes: SGLang's paths and answers in front of the engine. Refuses to answer before the policy is loaded.

Routes that change what is served need the admin key where one is set.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from services.common.app import require_admin
from services.common.errors import ServiceError, Unavailable
from services.policy_server.engine import Engine
from services.policy_server.loading import EngineLoader
from services.policy_server.progress import Progress
from services.policy_server.sampling import SamplingParams
from services.policy_server.sequences import GenerateRequest
from services.policy_server.wire import parse_generate, render_event, render_generate, render_loads

HEALTH_DEADLINE_S = 20.0
CONTROL_DEADLINE_S = 120.0
"""A control call waits for the step that is running, and for the disk."""

router = APIRouter(tags=["sglang"])
admin = APIRouter(tags=["sglang, control"], dependencies=[Depends(require_admin)])


class PauseBody(BaseModel):
    """``abort`` ends running requests with what they have, ``retract`` sends them back to wait, ``in_place`` freezes them."""

    mode: Literal["abort", "retract", "in_place"] = "abort"


class UpdateBody(BaseModel):
    """``weight_version`` names the new weights in later answers. ``flush_cache`` is taken as true: the cache belongs to the old ones."""

    model_path: str = Field(min_length=1)
    weight_version: str | None = None
    abort_all_requests: bool = False
    flush_cache: bool = True


class AbortBody(BaseModel):
    """One request by its ``rid``, or all."""

    rid: str = ""
    abort_all: bool = False


def loader_of(request: Request) -> EngineLoader:
    """The loader of this app."""
    return cast(EngineLoader, request.app.state.loader)


def engine_of(request: Request) -> Engine:
    """The engine of this app. Raises Unavailable while it is being loaded."""
    loader = loader_of(request)
    if loader.engine is None:
        raise Unavailable(f"the policy is not loaded: {loader.reason}", code="not_loaded", retry_after_s=1.0)
    return loader.engine


@router.post("/generate")
async def generate(request: Request) -> Response:
    """Generates from ``input_ids``, with ``stream`` as server-sent events. A client that goes away aborts its request."""
    engine = engine_of(request)
    parsed, wanted = parse_generate(await request.body())
    if wanted.stream:
        return streamed(engine, parsed, logprobs=wanted.logprobs)
    sequence, future = engine.submit(parsed)
    result = asyncio.wrap_future(future)
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(abort_when_gone(request, engine, sequence.rid))
        await asyncio.wait([result])
        watcher.cancel()
    return Response(render_generate(result.result(), logprobs=wanted.logprobs), media_type="application/json")


def streamed(engine: Engine, parsed: GenerateRequest, *, logprobs: bool) -> Response:
    """The answer as events; what is refused is refused before the first one. An event may have several new tokens."""
    progress = Progress()
    sequence, future = engine.submit(replace(parsed, notify=progress.notify))
    future.add_done_callback(lambda _: progress.notify())

    async def events() -> AsyncIterator[bytes]:
        try:
            while not future.done():
                await progress.wait()
                if not future.done():
                    yield render_event(engine.snapshot(sequence), logprobs=logprobs)
            yield render_event(future.result(), logprobs=logprobs)
        except ServiceError as error:
            yield b"data: " + orjson.dumps({"error": {"message": error.detail, "type": error.code, "code": error.status}}) + b"\n\n"
        finally:
            if not future.done():
                engine.abort(sequence.rid, "the client disconnected")
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def abort_when_gone(request: Request, engine: Engine, rid: str) -> None:
    """Waits for the client to disconnect, then ends its request."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    engine.abort(rid, "the client disconnected")


@router.get("/health_generate")
async def health_generate(request: Request) -> Response:
    """Generates one token; 503 where that does not happen in time."""
    engine = engine_of(request)
    probe = GenerateRequest(input_ids=[0], sampling=SamplingParams(max_new_tokens=1, temperature=0.0))
    try:
        async with asyncio.timeout(HEALTH_DEADLINE_S):
            await engine.generate(probe)
    except TimeoutError:
        raise Unavailable(f"no token within {HEALTH_DEADLINE_S:g} s (paused: {engine.load().paused})", code="unhealthy") from None
    return Response(status_code=200)


@router.get("/model_info")
@router.get("/get_model_info", include_in_schema=False)
async def model_info(request: Request) -> dict[str, Any]:
    """Which weights are served."""
    weights = engine_of(request).weights
    return {
        "model_path": weights.path,
        "tokenizer_path": weights.path,
        "is_generation": True,
        "weight_version": weights.version,
        "context_length": weights.model.config.max_position_embeddings,
        "vocab_size": weights.model.config.vocab_size,
    }


@router.get("/server_info")
@router.get("/get_server_info", include_in_schema=False)
async def server_info(request: Request) -> dict[str, Any]:
    """Sizes and load."""
    engine = engine_of(request)
    load = engine.load()
    return {
        "engine": "frontdesk torch stand-in for SGLang",
        "model_path": engine.weights.path,
        "weight_version": engine.weights.version,
        **asdict(engine.settings),
        "paused": load.paused,
        "internal_states": [{"running": load.running, "queued": load.waiting, "kv_tokens": load.kv_tokens, **asdict(load.totals)}],
    }


@router.get("/v1/loads")
async def loads(request: Request) -> dict[str, Any]:
    """Requests running and waiting, as routers and proxies ask for them."""
    engine = engine_of(request)
    return render_loads(engine.load(), engine.settings)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether new requests are served now; 503 while paused."""
    return Response(status_code=503 if engine_of(request).load().paused else 200)


@admin.post("/pause_generation")
async def pause_generation(request: Request, body: PauseBody | None = None) -> dict[str, str]:
    """Stops computing; returns when it has stopped. New requests wait."""
    mode = body.mode if body else "abort"
    await asyncio.wait_for(asyncio.wrap_future(engine_of(request).pause(mode)), CONTROL_DEADLINE_S)
    return {"status": "ok", "message": f"generation paused ({mode})"}


@admin.post("/continue_generation")
async def continue_generation(request: Request) -> dict[str, str]:
    """Goes on after a pause."""
    await asyncio.wait_for(asyncio.wrap_future(engine_of(request).resume()), CONTROL_DEADLINE_S)
    return {"status": "ok", "message": "generation continues"}


@admin.post("/update_weights_from_disk")
async def update_weights_from_disk(request: Request, body: UpdateBody) -> Response:
    """Serves the weights in a folder; running requests go on under them. 400 with ``success`` false where they cannot be read."""
    future = engine_of(request).update_weights(Path(body.model_path), body.weight_version, abort_all=body.abort_all_requests)
    outcome = await asyncio.wait_for(asyncio.wrap_future(future), CONTROL_DEADLINE_S)
    return JSONResponse(asdict(outcome), status_code=200 if outcome.success else 400)


@admin.post("/abort_request")
async def abort_request(request: Request, body: AbortBody) -> dict[str, int]:
    """Ends requests with what they have."""
    if not body.rid and not body.abort_all:
        return {"aborted": 0}
    future = engine_of(request).abort(None if body.abort_all else body.rid)
    return {"aborted": await asyncio.wait_for(asyncio.wrap_future(future), CONTROL_DEADLINE_S)}


@admin.api_route("/flush_cache", methods=["GET", "POST"], operation_id="flush_cache")
async def flush_cache(request: Request) -> Response:
    """Empties the cache, 400 while requests are running."""
    done = await asyncio.wait_for(asyncio.wrap_future(engine_of(request).flush()), CONTROL_DEADLINE_S)
    message = "cache flushed" if done else "not flushed: requests are running"
    return JSONResponse({"success": done, "message": message}, status_code=200 if done else 400)
