"""Owns talking to Redis: the scripts, deadlines, and what a Redis failure means to a caller.

Every failure of Redis is a 503 that says what happened; the client reconnects by itself, so a Redis that restarts needs no
restart of the store. A script may run twice where an answer was lost, so every script gives the same result when repeated.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import (
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.errors import Unavailable
from services.trajectory_store.accounts import EXAMPLES_PER_REASON
from services.trajectory_store.durability import EVERYSEC_NOTE, refusal, risks
from services.trajectory_store.keys import ENDED_BATCH_TTL_S, TRIALS, Keys, lua_keys
from services.trajectory_store.redis_store.connection import Client, close, connect, without_secrets
from services.trajectory_store.states import lua_edges

log = logging.getLogger(__name__)

Argument = str | bytes | int | float

EVENTS_KEPT = 10_000
TRANSIENT = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Error codes of Redis that say "not now" rather than "never"."""
TYPED: Mapping[type[ResponseError], str] = {OutOfMemoryError: "OOM", ReadOnlyError: "READONLY", TryAgainError: "TRYAGAIN"}
"""For plain commands redis-py turns some codes into types and takes them off the text; errors inside scripts keep their text."""
SCRIPTS = (
    "enqueue",
    "lease_rollouts",
    "sweep",
    "heartbeat",
    "release",
    "cancel",
    "pause",
    "put_trajectory",
    "pack_session",
    "retire",
    "lease_batch",
    "batch_members",
    "ack_batch",
    "nack_batch",
    "extend_batch",
    "clear_alarm",
    "publish_version",
    "append_metrics",
    "stats",
    "snapshot",
)
"""KEYS[1] is the prefix of the trial."""
SESSION_SCRIPTS = ("session_open", "session_begin", "session_record", "session_seal", "session_view")
"""KEYS[1] is the session: two of them run for every call of the policy, so they come without the library."""


@cache
def script_text(name: str) -> str:
    """The source of one script as Redis gets it."""
    folder = files("services.trajectory_store") / "lua"
    source = (folder / f"{name}.lua").read_text(encoding="utf-8")
    if name in SESSION_SCRIPTS:
        return source
    return "\n".join([lua_keys(), lua_edges(), _lua_constants(), (folder / "lib.lua").read_text(encoding="utf-8"), source])


def _lua_constants() -> str:
    constants = {"EVENTS_KEPT": EVENTS_KEPT, "EXAMPLES": EXAMPLES_PER_REASON, "ENDED_BATCH_TTL_S": ENDED_BATCH_TTL_S}
    return "\n".join(f"local {name} = {value}" for name, value in constants.items())


@contextmanager
def failures_as_unavailable() -> Generator[None]:
    """Turns failures of Redis that may pass into 503 with a clear text."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, ClusterDownError, OSError) as error:
        # Sentinel and cluster clients report a missing primary as an error of their own below these types.
        raise Unavailable(f"Redis does not answer: {error}", code="redis_unreachable", retry_after_s=1) from error
    except RedisClusterException as error:
        raise Unavailable(f"the Redis cluster cannot be used: {error}", code="redis_unreachable", retry_after_s=1) from error
    except ResponseError as error:
        code = _transient_code(error)
        if code is None:
            raise
        raise Unavailable(f"Redis refuses writes now: {error}", code=f"redis_{code.lower()}", retry_after_s=5) from error


def _transient_code(error: ResponseError) -> str | None:
    text = str(error)
    return TYPED.get(type(error)) or next((code for code in TRANSIENT if text.startswith(code) or f"-{code} " in text), None)


class Server:
    """One Redis (or a cluster of them), shared by all trials of this process."""

    def __init__(self, url: str) -> None:
        self.client: Client = connect(url)
        self._address = without_secrets(url)
        self.scripts: dict[str, Any] = {name: self.client.register_script(script_text(name)) for name in (*SCRIPTS, *SESSION_SCRIPTS)}
        self.risks: dict[str, str] = {}
        """How this Redis could lose acknowledged data, as of the last look."""

    async def close(self) -> None:
        """Closes all connections."""
        await close(self.client)

    async def health(self) -> str:
        """``ok`` with what could lose data, or why Redis cannot be used. Warns where a risk is new."""
        try:
            info, settings = await self._look()
        except (RedisError, OSError) as error:
            return f"redis at {self._address}: {error}"
        if reason := refusal(info):
            return f"redis at {self._address}: {reason}"
        found = risks(info, settings)
        for name in found.keys() - self.risks.keys():
            log.warning("redis: %s", found[name])
        if found.keys() != self.risks.keys() and not found and settings.get("appendfsync") == "everysec":
            log.info("redis: appendfsync is everysec: %s", EVERYSEC_NOTE)
        self.risks = found
        return "ok, but acknowledged data can be lost: " + "; ".join(found.values()) if found else "ok"

    async def _look(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        info: dict[str, Any] = {}
        for section in ("server", "persistence", "memory", "replication"):
            answer = await self.client.info(section)
            # A cluster client answers by node.
            info |= next(iter(answer.values())) if answer and all(isinstance(value, dict) for value in answer.values()) else answer
        settings: dict[str, str] = {}
        try:
            for name in ("appendfsync", "maxmemory-policy"):
                answer = await self.client.config_get(name)
                settings |= {_text(key): _text(value) for key, value in answer.items()}
        except ResponseError:
            log.debug("redis: CONFIG GET is not allowed here, appendfsync is not known")
        return info, settings

    async def trials(self) -> list[str]:
        """``experiment/trial`` of all trials that were ever written to. Raises `Unavailable`."""
        with failures_as_unavailable():
            return sorted(_text(name) for name in await self.client.smembers(TRIALS))

    async def register(self, trial: str) -> None:
        """Notes that a trial exists. Raises `Unavailable`."""
        with failures_as_unavailable():
            await self.client.sadd(TRIALS, trial)


class Database:
    """The part of a Redis that belongs to one trial."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self.server = server
        self.keys = keys

    async def run(self, script: str, *arguments: Argument) -> Any:
        """Runs a script on the trial. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self.server.scripts[script]([self.keys.prefix], arguments)

    async def run_on_session(self, script: str, session_id: str, *arguments: Argument) -> Any:
        """Runs a session script on one session. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self.server.scripts[script]([self.keys.session(session_id)], arguments)

    def pipeline(self) -> Any:
        """Reads to send together, for `execute`. What must be seen at one moment is a script: a full Redis refuses MULTI."""
        return self.server.client.pipeline(transaction=False)

    async def execute(self, pipeline: Any) -> list[Any]:
        """The answers of a pipeline, in order. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await pipeline.execute()

    async def command(self, *parts: Argument) -> Any:
        """One plain Redis command. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self.server.client.execute_command(*parts)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
