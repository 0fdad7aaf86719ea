"""Owns what the routes of AReaL's proxy mean here: sessions that are begun by task, rewarded, ended and exported with one key each.

Everything is in the store, so any proxy of the trial can go on with a session, also after a crash; AReaL keeps it in the memory of one
process. The protocol is that of areal/experimental/openai/proxy (client_session.py, proxy_rollout_server.py, server.py). Refuses to hand
out a session with a call that was begun and never recorded, and to wait for ever.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from services.common.errors import BadRequest, Busy, Conflict, DeadlineExceeded, NotFound, ServiceError, Unavailable
from services.common.ids import is_valid_id, new_id
from services.common.wire.calls import CallRecord
from services.common.wire.sessions import OpenSessionBody, Reward
from services.common.wire.store import SessionView
from services.policy_proxy.sessions.export import Style, areal_interactions, rows
from services.policy_proxy.sessions.keys import digest_of, is_derived
from services.policy_proxy.sessions.store import Store
from services.policy_proxy.sessions.table import SessionTable

END_WAIT_S = 5.0
"""How long an end waits for calls in flight; AReaL's client gives each try 10 s and comes again after a 503."""
POLL_S = 0.25
TASKS_REMEMBERED = 10_000
TRIES = 64
"""Numbers tried for a new session of a task; they double, so this is more than there are."""
LONGEST_TASK = 100


class Gone(ServiceError):
    """The session has ended or was forgotten."""

    status, code, title = 410, "session_gone", "Gone"


@dataclass(frozen=True, slots=True)
class Started:
    """A session that has begun."""

    session_id: str
    api_key: str


class ArealSessions:
    """Sessions in AReaL's protocol. ``capacity``: sessions that may begin without a grant; None: all may."""

    def __init__(self, store: Store, sessions: SessionTable, *, capacity: int | None, export_wait_s: float) -> None:
        self._store = store
        self._sessions = sessions
        self._capacity = capacity
        self._export_wait_s = export_wait_s
        self._next: OrderedDict[str, int] = OrderedDict()

    async def grant(self) -> int:
        """Lets one more session begin; how many may."""
        return await self._store.grant(self._capacity or 0)

    async def start(self, task_id: str, api_key: str | None, admin_key: str) -> Started:
        """Begins the next session of a task, under a key of the caller's or a fresh one.

        Raises `Busy` where no grant is left, `BadRequest` or `Conflict` where the key cannot be used.
        """
        key = api_key or _fresh_key()
        if admin_key and key == admin_key:
            raise BadRequest("api_key: the admin key cannot be a session's key", code="admin_key", param="api_key")
        if is_derived(key):
            raise BadRequest("api_key: this one belongs to a session of POST /v1/sessions for good", code="derived_key", param="api_key")
        name, opener = _session_name(task_id), new_id("start")
        body = OpenSessionBody(opener=opener, key_digest=digest_of(key), grants=self._capacity)
        for number in self._numbers(name):
            try:
                await self._store.open_session(f"{name}-{number}", body)
            except Conflict as error:
                if error.code == "no_grant":
                    raise Busy(
                        "no capacity for a new session; POST /grant_capacity adds one", code="no_capacity", retry_after_s=1.0
                    ) from error
                if error.code != "session_exists":
                    raise
            else:
                self._remember(name, number + 1)
                return Started(f"{name}-{number}", key)
        raise Conflict(f"task_id: no number is free for another session of {task_id}", code="session_exists", param="task_id")

    async def end(self, session_id: str) -> int:
        """Seals; how many calls there are. Raises `Gone`, or `Unavailable` while calls are in flight."""
        await self._sessions.drain(session_id, END_WAIT_S)
        try:
            view = await self._sessions.seal(session_id)
        except NotFound as error:
            raise Gone(f"session {session_id} has expired") from error
        except Conflict as error:
            raise Unavailable(error.detail, code=error.code, retry_after_s=1.0) from error
        if view.closed:
            raise Gone(f"session {session_id} has ended before: {view.closed}")
        return view.n_calls

    async def set_reward(self, session_id: str, interaction_id: str | None, value: float) -> None:
        """Rewards a call, or with None everything until now. Raises `BadRequest` where there is no such call, `Gone`."""
        try:
            if interaction_id is None:
                reward = Reward(call_id=await self._last_call(session_id), value=value, source="areal", whole=True)
            else:
                reward = _reward_of(interaction_id, value)
            await self._store.reward(session_id, reward)
        except NotFound as error:
            raise Gone(f"session {session_id} has expired") from error
        except Conflict as error:
            raise Gone(error.detail) from error

    async def export(self, session_id: str, *, discount: float, style: Style, drop_retry_orphans: bool) -> bytes:
        """AReaL's answer as JSON, once the session has ended. It may be asked for again until the store forgets the session.

        Raises `NotFound`, `DeadlineExceeded` where it does not end, `Conflict` where a call was begun and never recorded.
        """
        if not is_valid_id(session_id):
            raise NotFound(f"session {session_id} is not known", code="session_unknown")
        await self._ended(session_id)
        calls = await self._store.calls(session_id)
        await self._check_complete(session_id, calls, retried_is_fine=drop_retry_orphans)
        # Closed before the rewards are read: one that comes later is refused, and not silently left out.
        await self._store.seal(session_id, exported=True)
        rewards = await self._store.rewards(session_id)

        def write() -> bytes:
            exported = rows(calls, rewards, discount=discount, style=style, drop_orphans=drop_retry_orphans)
            return orjson.dumps({"interactions": areal_interactions(exported)})

        # Tens of megabytes for a long session.
        return await asyncio.to_thread(write)

    async def _ended(self, session_id: str) -> SessionView:
        give_up_at = time.monotonic() + self._export_wait_s
        while True:
            view = await self._store.session(session_id)
            if view.sealed:
                return view
            if time.monotonic() > give_up_at:
                raise DeadlineExceeded(
                    f"session {session_id} has not ended within {self._export_wait_s:g} s; POST /rl/end_session ends it", code="not_ended"
                )
            await asyncio.sleep(POLL_S)

    async def _check_complete(self, session_id: str, calls: list[CallRecord], *, retried_is_fine: bool) -> None:
        begun = await self._store.intents(session_id)
        retried = {call.digest for call in calls} if retried_is_fine else set[str]()
        if missing := sorted(call_id for call_id, digest in begun.items() if digest not in retried):
            raise Conflict(
                f"session {session_id} is incomplete and cannot be trained on: {', '.join(missing)} was begun and never recorded",
                code="session_incomplete",
            )

    async def _last_call(self, session_id: str) -> str:
        known = self._sessions.last_call(session_id)
        if known is None:
            calls = await self._store.calls(session_id)
            known = calls[-1].call_id if calls else None
        if known is None:
            raise BadRequest("no interactions in this session yet", code="no_interactions")
        return known

    def _numbers(self, name: str) -> Iterator[int]:
        """0, 1, 2 … where this process knows how many there are, else in growing steps: other proxies count too."""
        number, step = self._next.get(name, 0), 1
        for _ in range(TRIES):
            yield number
            number += step
            step *= 2

    def _remember(self, name: str, number: int) -> None:
        self._next[name] = number
        self._next.move_to_end(name)
        if len(self._next) > TASKS_REMEMBERED:
            self._next.popitem(last=False)


def _fresh_key() -> str:
    while is_derived(key := secrets.token_urlsafe(32)):
        continue
    return key


def _reward_of(interaction_id: str, value: float) -> Reward:
    if not is_valid_id(interaction_id):
        raise BadRequest(f"interaction {interaction_id} not found", code="call_unknown", param="interaction_id")
    return Reward(call_id=interaction_id, value=value, source="areal")


def _session_name(task_id: str) -> str:
    """The task's id where it may be part of a session's id, else what is left of it and a digest, so that no two tasks are mixed up."""
    name = re.sub(r"[^A-Za-z0-9._:\-]", "_", task_id)[:LONGEST_TASK]
    if name == task_id and re.match(r"[A-Za-z0-9]", name):
        return name
    return f"task{name and '.'}{name}.{hashlib.sha256(task_id.encode()).hexdigest()[:8]}"
