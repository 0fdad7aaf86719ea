"""Owns the proxy's side of the trajectory store's routes. Every call here is idempotent, so it is repeated until the budget is spent."""

from typing import NoReturn

import msgspec

from services.common.errors import Conflict, NotFound, RemoteError, Unavailable
from services.common.http import MSGPACK, ServiceClient
from services.common.wire.calls import CallRecord, decode_call, encode_call
from services.common.wire.store import PolicyVersion, SessionView

RETRY_S = 30.0
"""Long enough for a store that was killed to come back; then the agent's own retry takes over."""


class Store:
    """Sessions, call records and policy versions. Raises `NotFound`, `Conflict` (sealed) or `Unavailable`."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def open_session(self, session_id: str) -> SessionView:
        """Creates the session where it is new."""
        return SessionView.model_validate_json(await self._request("PUT", f"/v1/sessions/{session_id}", json={}))

    async def session(self, session_id: str) -> SessionView:
        """One session."""
        return SessionView.model_validate_json(await self._request("GET", f"/v1/sessions/{session_id}"))

    async def calls(self, session_id: str) -> list[CallRecord]:
        """Its calls in ordinal order."""
        body = await self._request("GET", f"/v1/sessions/{session_id}/calls")
        return [decode_call(item) for item in msgspec.msgpack.decode(body, type=list[bytes])]

    async def intend(self, session_id: str, call_id: str, digest: str) -> None:
        """Says that a call is about to leave for a policy server."""
        await self._request("POST", f"/v1/sessions/{session_id}/intents/{call_id}", json={"digest": digest})

    async def record(self, record: CallRecord) -> None:
        """Makes a call durable."""
        path = f"/v1/sessions/{record.session_id}/calls/{record.call_id}"
        await self._request("PUT", path, data=encode_call(record), content_type=MSGPACK)

    async def seal(self, session_id: str) -> SessionView:
        """Closes a session for good."""
        return SessionView.model_validate_json(await self._request("POST", f"/v1/sessions/{session_id}/seal", json={}))

    async def latest_version(self) -> PolicyVersion | None:
        """The newest published weights; None before the first publication. One attempt: the caller asks again anyway."""
        try:
            return PolicyVersion.model_validate_json(await self._request("GET", "/v1/policy_versions/latest", retry_s=0.0))
        except NotFound:
            return None

    async def check(self) -> str:
        """Readiness: "ok" or the reason it is not."""
        try:
            await self._client.request("GET", "/healthz", timeout_s=2.0, retry_s=0.0)
        except RemoteError as error:
            return str(error)
        return "ok"

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: bytes | None = None,
        content_type: str = "application/json",
        retry_s: float = RETRY_S,
    ) -> bytes:
        try:
            return await self._client.request(method, path, json=json, data=data, content_type=content_type, retry_s=retry_s)
        except RemoteError as error:
            _raise_ours(error)


def _raise_ours(error: RemoteError) -> NoReturn:
    if error.status == 404:
        raise NotFound(error.detail, code=error.code) from error
    if error.status == 409:
        raise Conflict(error.detail, code=error.code) from error
    raise Unavailable(f"the trajectory store does not take this: {error}", code="store_unavailable", retry_after_s=1.0) from error
