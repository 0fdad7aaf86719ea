"""Owns the agent-facing routes: OpenAI chat completions and the session routes around them. Refuses logic: that is in the core."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from services.common.app import bearer, require_admin
from services.common.errors import TooLarge
from services.common.ids import new_id
from services.common.wire.calls import CallRecord
from services.common.wire.rollouts import Id, Wire
from services.common.wire.store import SessionView
from services.policy_proxy import chat
from services.policy_proxy.calls import Answer, CallKey, Incoming
from services.policy_proxy.sessions import Done, Session

if TYPE_CHECKING:
    from services.policy_proxy.app import Proxy

MAX_BODY_BYTES = 16 * 2**20
"""A conversation at a 128k-token context limit is below 1 MB."""


class OpenSessionBody(Wire):
    """POST /v1/sessions."""

    session_id: Id | None = None
    ttl_s: float | None = Field(default=None, gt=0)
    """Idle time after which memory forgets the session; the store keeps it, so it can go on later."""


class OpenSessionReply(Wire):
    session_id: Id
    api_key: str
    base_url: str


class DemonstrationReply(Wire):
    call_id: str


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()
    admin = [Depends(require_admin)]
    routes.add_api_route("/v1/chat/completions", complete_by_key, methods=["POST"], tags=["openai"])
    routes.add_api_route("/v1/models", models, tags=["openai"])
    routes.add_api_route("/v1/sessions/{sid}/v1/chat/completions", complete, methods=["POST"], tags=["openai"])
    routes.add_api_route("/v1/sessions/{sid}/v1/models", models, tags=["openai"])
    routes.add_api_route("/v1/sessions", open_session, methods=["POST"], dependencies=admin, tags=["sessions"])
    routes.add_api_route("/v1/sessions/{sid}/demonstrations", demonstrate, methods=["POST"], dependencies=admin, tags=["sessions"])
    routes.add_api_route("/v1/sessions/{sid}/seal", seal, methods=["POST"], dependencies=admin, tags=["sessions"])
    routes.add_api_route("/v1/sessions/{sid}/calls", calls, dependencies=admin, tags=["sessions"])
    return routes


async def complete(request: Request, sid: Id) -> Response:
    """An OpenAI chat completion in the session of the path."""
    _proxy(request).keys.require(bearer(request), sid)
    return await _complete(request, sid)


async def complete_by_key(request: Request) -> Response:
    """An OpenAI chat completion in the session of the key."""
    return await _complete(request, _proxy(request).keys.session_of(bearer(request)))


async def models() -> dict[str, Any]:
    """The one model there is."""
    return {"object": "list", "data": [{"id": chat.MODEL_ID, "object": "model", "created": 0, "owned_by": "frontdesk"}]}


async def open_session(request: Request, body: OpenSessionBody) -> OpenSessionReply:
    """Opens a session, or finds it by id, and hands out its key."""
    proxy = _proxy(request)
    session_id = body.session_id or new_id("session")
    await proxy.sessions.open(session_id, body.ttl_s)
    base_url = f"{str(request.base_url).rstrip('/')}/v1/sessions/{session_id}/v1"
    return OpenSessionReply(session_id=session_id, api_key=proxy.keys.issue(session_id), base_url=base_url)


async def demonstrate(request: Request, sid: Id) -> DemonstrationReply:
    """Records ``message`` as the tokens a policy would have had to say to ``messages``."""
    proxy = _proxy(request)
    # The same body is the same demonstration, so one sent again after a lost answer is not recorded twice.
    incoming = replace(await _incoming(request, sid), is_retry=True)
    shown = chat.read_demonstration(chat.parse_body(incoming.raw))

    async def work(session: Session, key: CallKey) -> Done:
        return await proxy.turns.demonstrate(session, key, shown, max(proxy.pool.policy_version, 0))

    answer = await proxy.calls.answer(incoming, work)
    return DemonstrationReply(call_id=answer.call_id)


async def seal(request: Request, sid: Id) -> SessionView:
    """Freezes the session; 409 while a call is in flight."""
    return await _proxy(request).sessions.seal(sid)


async def calls(request: Request, sid: Id, view: Literal["tokens"] = "tokens") -> dict[str, Any]:
    """The recorded calls for people to read; ``tokens`` has ids, logprobs and versions."""
    records = await _proxy(request).store.calls(sid)
    return {"session_id": sid, "view": view, "calls": [_readable(record) for record in records]}


async def _complete(request: Request, session_id: str) -> Response:
    proxy = _proxy(request)
    incoming = await _incoming(request, session_id)
    wanted = chat.read_request(chat.parse_body(incoming.raw))

    async def work(session: Session, key: CallKey) -> Done:
        return await proxy.turns.generate(session, key, wanted)

    return _response(await proxy.calls.answer(incoming, work, partial(_gone, request)))


async def _gone(request: Request) -> None:
    """Waits until the client has disconnected; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(answer: Answer) -> Response:
    headers = {
        "X-Policy-Version": str(answer.policy_version),
        "X-Call-Id": answer.call_id,
        "X-Proxy-Overhead-Ms": f"{answer.overhead_ms:.2f}",
    }
    if answer.malformed_tool_call:
        headers["X-Malformed-Tool-Call"] = "1"
    return Response(answer.body, headers=headers, media_type="application/json")


async def _incoming(request: Request, session_id: str) -> Incoming:
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise TooLarge(f"the body has {len(raw)} bytes, the limit is {MAX_BODY_BYTES}")
    retries = request.headers.get("x-stainless-retry-count", "0")
    return Incoming(session_id, raw, request.headers.get("idempotency-key", ""), is_retry=retries not in ("", "0"))


def _readable(record: CallRecord) -> dict[str, Any]:
    logprobs = record.output_logprobs()
    return {
        "call_id": record.call_id,
        "ordinal": record.ordinal,
        "parent": record.parent,
        "prompt_ids": record.prompt_ids().tolist(),
        "output_ids": record.output_ids().tolist(),
        "logprobs": None if logprobs is None else logprobs.tolist(),
        "versions": record.versions,
        "finish_reason": record.finish_reason,
        "malformed_tool_call": record.malformed_tool_call,
        "temperature": record.temperature,
        "message": record.response["choices"][0]["message"],
        "started_at": record.started_at,
        "ended_at": record.ended_at,
    }


def _proxy(request: Request) -> "Proxy":
    return cast("Proxy", request.app.state.proxy)
