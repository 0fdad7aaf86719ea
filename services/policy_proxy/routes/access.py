"""Owns which session a request speaks for: the key, the path and ``X-Session-Id``, which all must name the same one.

A key that ``POST /v1/sessions`` handed out says itself which session it is for (`keys`); one that was bound by ``/rl/start_session`` is
looked up in the store, so that every proxy of the trial knows it. Refuses to guess: two names that differ are an error that says both.
"""

from typing import TYPE_CHECKING, cast

from fastapi import Request

from services.common.app import bearer, check_admin
from services.common.errors import BadRequest, Forbidden, NotFound, Unauthorized
from services.policy_proxy.sessions.keys import digest_of, is_derived

if TYPE_CHECKING:
    from services.policy_proxy.app import Proxy

SESSION_HEADER = "x-session-id"


def proxy_of(request: Request) -> "Proxy":
    """What the routes work with."""
    return cast("Proxy", request.app.state.proxy)


async def session_of(request: Request, sid: str = "") -> str:
    """The session of a request; ``sid`` is the one in its path, "" where the key alone says it.

    Raises `Unauthorized` for a key nobody knows, `Forbidden` where it is the key of another session than the path's, `BadRequest` where
    ``X-Session-Id`` names another session than the path, or than the key.
    """
    owner = await _session_of_key(request)
    named = request.headers.get(SESSION_HEADER, "")
    if sid and named and named != sid:
        raise _mismatch(named, f"the path says {sid}")
    if sid and owner != sid:
        raise Forbidden(f"the session key does not belong to session {sid}", code="wrong_session")
    if named and named != owner:
        raise _mismatch(named, f"the key belongs to {owner}")
    return owner


async def session_or_admin(request: Request, sid: str) -> None:
    """Passes with the key of this session or with the admin key. Raises as `session_of`."""
    try:
        check_admin(request)
    except (Unauthorized, Forbidden):
        await session_of(request, sid)


async def _session_of_key(request: Request) -> str:
    proxy, key = proxy_of(request), bearer(request)
    if not key or is_derived(key):
        return proxy.keys.session_of(key)
    try:
        return await proxy.store.session_of_key(digest_of(key))
    except NotFound:
        raise Unauthorized("the session key is not valid, or its session is gone", code="invalid_api_key") from None


def _mismatch(named: str, other: str) -> BadRequest:
    return BadRequest(f"X-Session-Id: it says {named}, {other}; name one session", code="session_mismatch", param="X-Session-Id")
