"""Owns the routes that agents call: chat completions and the APIs that are translated to it, with and without a session in the path.

Refuses logic: reading bodies is `chat` and `dialects`, running calls is `calls`.
"""

import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from services.common.app import hot_route
from services.common.errors import NotFound, ServiceError, TooLarge
from services.common.wire.rollouts import Id
from services.policy_proxy import chat
from services.policy_proxy.calls.feed import Feed
from services.policy_proxy.calls.service import Answer, CallKey, ClientGone, Incoming, Work
from services.policy_proxy.chat import ChatRequest, Json
from services.policy_proxy.dialects.anthropic_answers import MESSAGES
from services.policy_proxy.dialects.anthropic_messages import to_count
from services.policy_proxy.dialects.base import CHAT, Dialect
from services.policy_proxy.dialects.responses_stream import RESPONSES
from services.policy_proxy.routes import openapi
from services.policy_proxy.routes.access import proxy_of, session_of
from services.policy_proxy.sessions.table import Done, Session
from services.policy_proxy.sse import EventStream

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
"""A conversation at a 128k-token context limit is below 1 MB."""
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C trace context: version, trace id, parent id, flags."""
MODEL: Json = {"id": chat.MODEL_ID, "object": "model", "created": 0, "owned_by": "frontdesk"}
BY_PATH = "/v1/sessions/{sid}/v1"
BY_KEY = "/v1"

Handler = Callable[[Request, str], Awaitable[Response]]


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()
    for path, dialect, tag, body in (
        ("/chat/completions", CHAT, "openai", openapi.CHAT_BODY),
        ("/responses", RESPONSES, "openai", openapi.RESPONSES_BODY),
        ("/messages", MESSAGES, "anthropic", openapi.MESSAGES_BODY),
    ):
        _add(routes, path, tag, body, partial(answer, dialect=dialect))
    _add(routes, "/messages/count_tokens", "anthropic", openapi.COUNT_BODY, _count)
    for base in (BY_KEY, BY_PATH):
        routes.add_api_route(f"{base}/models", models, tags=["openai"])
        routes.add_api_route(f"{base}/models/{{model}}", model, tags=["openai"], responses=openapi.MODEL_ERRORS)
    return routes


async def models() -> Json:
    """The one model there is."""
    return {"object": "list", "data": [MODEL]}


async def model(model: str) -> Json:
    """The one model there is, by its id."""
    if model != chat.MODEL_ID:
        raise NotFound(f"model: there is only {chat.MODEL_ID!r}", code="model_not_found", param="model")
    return MODEL


def _add(routes: APIRouter, path: str, tag: str, body: Json, handle: Handler) -> None:
    """One route in the session of the path, and one in the session of the key."""

    async def by_path(request: Request, sid: Id) -> Response:
        return await handle(request, sid)

    async def by_key(request: Request) -> Response:
        return await handle(request, "")

    async def hot(request: Request) -> Response:
        return await handle(request, request.path_params.get("sid", ""))

    name = path.strip("/").replace("/", "_")
    for base, endpoint in ((BY_PATH, by_path), (BY_KEY, by_key)):
        routes.routes.append(hot_route(base + path, hot, "POST"))
        # For the OpenAPI document: the one above is taken.
        routes.add_api_route(
            base + path,
            endpoint,
            methods=["POST"],
            tags=[tag],
            name=f"{name}_{endpoint.__name__}",
            responses=openapi.CALL_ERRORS,
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}},
        )


async def answer(request: Request, sid: str, dialect: Dialect) -> Response:
    """A call in one of the APIs, with errors in its own form; ``sid`` is "" where the key says the session."""
    try:
        return await _call(request, await session_of(request, sid), dialect)
    except ServiceError as error:
        return _refusal(dialect, error)


async def _call(request: Request, session_id: str, dialect: Dialect) -> Response:
    incoming = await incoming_of(request, session_id)
    body = chat.parse_body(incoming.raw)
    chat_body = dialect.to_chat(body)
    try:
        return await _run(request, incoming, body, chat_body, dialect)
    except ServiceError as error:
        raise dialect.renamed(error) from None


async def _run(request: Request, incoming: Incoming, body: Json, chat_body: Json, dialect: Dialect) -> Response:
    proxy = proxy_of(request)
    wanted = chat.read_request(chat_body, proxy.config.rollout.agent.tool_call_parser)
    if proxy.config.services.policy_proxy.untrue_logprobs == "refuse":
        chat.refuse_untrue(wanted)

    async def work(session: Session, key: CallKey, feed: Feed) -> Done:
        return await proxy.turns.generate(session, key, wanted, feed)

    if wanted.stream:
        return await _stream(request, incoming, body, dialect, work)
    answered = await proxy.calls.answer(incoming, work, partial(_gone, request))
    return Response(orjson.dumps(dialect.answer(answered.response, body)), headers=_headers(answered), media_type="application/json")


async def _stream(request: Request, incoming: Incoming, body: Json, dialect: Dialect, work: Work) -> Response:
    proxy = proxy_of(request)
    stream = await proxy.calls.stream(incoming, work, partial(_gone, request))
    # What goes wrong before the first event is an HTTP error.
    first = await anext(stream.events)
    record = stream.record
    created = int(time.time()) if record is None else record.response["created"]
    headers = {"X-Call-Id": stream.call_id, "X-Policy-Version": str(proxy.pool.policy_version)}
    return EventStream(first, stream.events, dialect.writer(stream.call_id, body, created), headers)


async def _count(request: Request, sid: str) -> Response:
    """Tokens that the prompt of a Messages request would have in this session."""
    try:
        proxy, session_id = proxy_of(request), await session_of(request, sid)
        body = chat.parse_body((await incoming_of(request, session_id)).raw)
        wanted: ChatRequest = chat.read_request(to_count(body), proxy.config.rollout.agent.tool_call_parser)
        n_tokens = await proxy.turns.count(await proxy.sessions.get(session_id), wanted)
    except ServiceError as error:
        return _refusal(MESSAGES, error)
    return Response(orjson.dumps({"input_tokens": n_tokens}), media_type="application/json")


async def _gone(request: Request) -> None:
    """Waits until the client has disconnected; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(answer: Answer) -> dict[str, str]:
    headers = {
        "X-Policy-Version": str(answer.policy_version),
        "X-Call-Id": answer.call_id,
        "X-Proxy-Overhead-Ms": f"{answer.overhead_ms:.2f}",
    }
    return headers | {"X-Malformed-Tool-Call": "1"} if answer.malformed_tool_call else headers


def _refusal(dialect: Dialect, error: ServiceError) -> Response:
    if error.status >= 500:
        log.warning("%s: %s", error.code, error.detail)
    body: Any = orjson.dumps(dialect.error(error))
    return Response(body, error.status, error.headers(), media_type="application/json")


async def read_body(request: Request) -> bytes:
    """The raw body. Raises `TooLarge` as soon as it is, and `ClientGone`."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client hung up before its request ended")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            raise TooLarge(f"the body has over {MAX_BODY_BYTES} bytes, the limit")
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@asynccontextmanager
async def body_of(request: Request) -> AsyncGenerator[bytes]:
    """`read_body` for `LeanRoutes`."""
    yield await read_body(request)


async def incoming_of(request: Request, session_id: str) -> Incoming:
    """A request as the call guard wants it. Raises `TooLarge`."""
    raw, headers = await read_body(request), request.headers
    retries = headers.get("x-stainless-retry-count", "0")
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return Incoming(
        session_id, raw, headers.get("idempotency-key", ""), is_retry=retries not in ("", "0"), trace_id=trace.group(1) if trace else ""
    )
