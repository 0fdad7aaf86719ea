"""Owns talking to `policy_proxy`: opening a session, calls of the policy, recorded demonstrations, sealing.

Calls carry client-chosen ids, so a retry after a lost answer gets the same answer. Refuses to see tokens.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from services.agent_runner.conversation.messages import Json
from services.agent_runner.conversation.orchestrator import ContextExceeded
from services.common.app import admin_headers
from services.common.errors import RemoteError
from services.common.http import ServiceClient

SEAL_PATIENCE_S = 30.0
"""How long a session may have a call in flight before sealing it is given up."""


class UnexpectedAnswer(Exception):
    """The proxy answered with success, but not with a chat completion."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Access to one proxy session."""

    session_id: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion."""

    message: Json
    policy_version: int | None
    malformed_tool_call: bool = False
    """Whether the policy meant a tool call that the proxy could not parse; it stands in the text then."""


class ProxyClient:
    """The routes of the proxy that an episode needs. Every method raises `RemoteError` where the proxy cannot be had."""

    def __init__(self, client: ServiceClient, *, call_timeout_s: float) -> None:
        self._client = client
        self._call_timeout_s = call_timeout_s

    async def open(self, session_id: str, ttl_s: float) -> Grant:
        """Opens a session; idempotent."""
        body = {"session_id": session_id, "ttl_s": ttl_s}
        reply = await self._client.post("/v1/sessions", body, headers=admin_headers())
        return Grant(session_id, str(reply["api_key"]))

    async def complete(self, grant: Grant, call_id: str, body: Json) -> Answer:
        """One chat completion under ``call_id``. Raises `ContextExceeded` where the conversation no longer fits."""
        path = f"/v1/sessions/{grant.session_id}/v1/chat/completions"
        raw, headers = await self._call(path, call_id, body, {"Authorization": f"Bearer {grant.api_key}"})
        return Answer(_message(raw), _version(headers), headers.get("x-malformed-tool-call") == "1")

    async def demonstrate(self, grant: Grant, call_id: str, body: Json) -> None:
        """Records ``body["message"]`` as what a policy would have had to say after ``body["messages"]``. Raises `ContextExceeded`."""
        await self._call(f"/v1/sessions/{grant.session_id}/demonstrations", call_id, body, admin_headers())

    async def _call(self, path: str, call_id: str, body: Json, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        keyed = {**headers, "Idempotency-Key": call_id}
        timeout_s = self._call_timeout_s
        try:
            return await self._client.request_full("POST", path, json=body, headers=keyed, timeout_s=timeout_s, retry_s=timeout_s)
        except RemoteError as error:
            if error.status == 400 and error.code == "context_length_exceeded":
                raise ContextExceeded(error.detail) from error
            raise

    async def seal(self, session_id: str) -> None:
        """Seals a session; waits for a call that is still in flight (409), as after a cancelled one."""
        give_up_at = time.monotonic() + SEAL_PATIENCE_S
        while True:
            try:
                await self._client.post(f"/v1/sessions/{session_id}/seal", headers=admin_headers())
                return
            except RemoteError as error:
                if error.status != 409 or time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(0.2)


def _message(raw: bytes) -> Json:
    try:
        return orjson.loads(raw)["choices"][0]["message"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise UnexpectedAnswer(f"the proxy's answer is no chat completion: {error!r}") from error


def _version(headers: Mapping[str, str]) -> int | None:
    value = headers.get("x-policy-version", "")
    return int(value) if value.isdecimal() else None
