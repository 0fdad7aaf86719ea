"""Owns the proxy's side of the trajectory store's routes. Every call here is idempotent, so it is repeated until the budget is spent."""

from typing import NoReturn

import msgspec

from services.common.errors import BadRequest, Conflict, NotFound, RemoteError, Unavailable
from services.common.http import ServiceClient
from services.common.wire.call_log import LogEntry
from services.common.wire.calls import CallRecord, decode_call, encode_call
from services.common.wire.sessions import GrantBody, GrantReply, IntentsReply, OpenSessionBody, Reward, RewardsReply, SessionKeyReply
from services.common.wire.store import PolicyVersion, SealBody, SessionView
from services.policy_proxy.sessions.call_log import CallLog, Written

RETRY_S = 30.0
"""Long enough for a store that was killed to come back; then the agent's own retry takes over."""


class Store:
    """Sessions, call records, rewards and policy versions. Raises `BadRequest`, `NotFound`, `Conflict` (sealed) or `Unavailable`."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._log = CallLog(client, RETRY_S)

    @property
    def log_flows(self) -> bool:
        """Whether intents and records are durable at once, as far as is known."""
        return self._log.flows

    async def keep_log(self) -> None:
        """Keeps intents and records going, for as long as the service runs."""
        await self._log.run()

    async def open_session(self, session_id: str, body: OpenSessionBody | None = None) -> SessionView:
        """Creates the session where it is new; with a body that asks for it, only where it is new (`Conflict`)."""
        wanted = {} if body is None else body.model_dump(exclude_none=True)
        return SessionView.model_validate_json(await self._request("PUT", f"/v1/sessions/{session_id}", json=wanted))

    async def session_of_key(self, digest: str) -> str:
        """The session of a key that a client chose."""
        return SessionKeyReply.model_validate_json(await self._request("GET", f"/v1/session_keys/{digest}")).session_id

    async def grant(self, initial: int) -> int:
        """Lets one more session begin; how many may. One attempt: a repeat after a lost answer would grant twice."""
        body = GrantBody(initial=initial).model_dump()
        return GrantReply.model_validate_json(await self._request("POST", "/v1/grants", json=body, retry_s=0.0)).capacity

    async def session(self, session_id: str) -> SessionView:
        """One session."""
        return SessionView.model_validate_json(await self._request("GET", f"/v1/sessions/{session_id}"))

    async def calls(self, session_id: str) -> list[CallRecord]:
        """Its calls in ordinal order."""
        body = await self._request("GET", f"/v1/sessions/{session_id}/calls")
        return [decode_call(item) for item in msgspec.msgpack.decode(body, type=list[bytes])]

    def intend(self, session_id: str, call_id: str, digest: str) -> Written:
        """Says that a call is about to leave for a policy server."""
        return self._log.write(LogEntry(session_id, call_id, digest))

    async def durable(self, line: Written) -> int:
        """Returns once a line is; for an intent, how many calls are recorded."""
        outcome = await line
        if isinstance(outcome, RemoteError):
            _raise_ours(outcome)
        if outcome.status != 200:
            _raise_ours(RemoteError(self._client.name, outcome.status, outcome.code, outcome.detail))
        return outcome.n_calls

    async def intents(self, session_id: str) -> dict[str, str]:
        """Calls begun and not recorded, with the digests of their bodies."""
        return IntentsReply.model_validate_json(await self._request("GET", f"/v1/sessions/{session_id}/intents")).items

    async def reward(self, session_id: str, reward: Reward) -> None:
        """Keeps a reward in the place of the one of the same call and name."""
        await self._request("PUT", f"/v1/sessions/{session_id}/rewards", json=reward.model_dump())

    async def rewards(self, session_id: str) -> list[Reward]:
        """All rewards of a session."""
        return RewardsReply.model_validate_json(await self._request("GET", f"/v1/sessions/{session_id}/rewards")).items

    async def record(self, record: CallRecord) -> None:
        """Makes a call durable."""
        await self.durable(self._log.write(LogEntry(record.session_id, record.call_id, record=encode_call(record))))

    async def seal(self, session_id: str, *, exported: bool = False) -> SessionView:
        """Closes a session for good; ``exported``: for rewards too, because its calls were handed out."""
        body = SealBody(exported=exported).model_dump(exclude_defaults=True)
        return SessionView.model_validate_json(await self._request("POST", f"/v1/sessions/{session_id}/seal", json=body))

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

    async def _request(self, method: str, path: str, *, json: object = None, retry_s: float = RETRY_S) -> bytes:
        try:
            return await self._client.request(method, path, json=json, retry_s=retry_s)
        except RemoteError as error:
            _raise_ours(error)


def _raise_ours(error: RemoteError) -> NoReturn:
    if error.status == 400:
        raise BadRequest(error.detail, code=error.code) from error
    if error.status == 404:
        raise NotFound(error.detail, code=error.code) from error
    if error.status == 409:
        raise Conflict(error.detail, code=error.code) from error
    raise Unavailable(f"the trajectory store does not take this: {error}", code="store_unavailable", retry_after_s=1.0) from error
