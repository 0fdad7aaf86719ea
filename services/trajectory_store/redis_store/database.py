"""Owns the connection to Redis: the client and its deadlines, the scripts, and what a Redis failure means to a caller.

Every failure of Redis is a 503 that says what happened; the client reconnects by itself, so a Redis that restarts needs no
restart of the store. A script may run twice where an answer was lost, so every script gives the same result when repeated.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.errors import Unavailable
from services.trajectory_store.keys import Keys, lua_keys
from services.trajectory_store.states import lua_edges

log = logging.getLogger(__name__)

Argument = str | bytes | int | float

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 256
RETRIES = 3
TRANSIENT = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Error codes of Redis that say "not now" rather than "never"."""
SCRIPTS = (
    "enqueue",
    "lease_rollouts",
    "sweep",
    "heartbeat",
    "release",
    "put_trajectory",
    "lease_batch",
    "ack_batch",
    "nack_batch",
    "extend_batch",
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
    return "\n".join([lua_keys(), lua_edges(), (folder / "lib.lua").read_text(encoding="utf-8"), source])


@contextmanager
def failures_as_unavailable() -> Generator[None]:
    """Turns failures of Redis that may pass into 503 with a clear text."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {error}", code="redis_unreachable", retry_after_s=1) from error
    except ResponseError as error:
        text = str(error)
        code = next((code for code in TRANSIENT if text.startswith(code) or f"-{code} " in text), None)
        if code is None:
            raise
        raise Unavailable(f"Redis refuses writes now: {text}", code=f"redis_{code.lower()}", retry_after_s=5) from error


class Database:
    """The Redis of one trial."""

    def __init__(self, url: str, keys: Keys) -> None:
        pool = ConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            protocol=2,
            decode_responses=False,
            socket_timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
        )
        self.keys = keys
        self._client = Redis.from_pool(pool)
        self._untyped: Any = self._client
        self._address = _without_secrets(url)
        self._scripts: dict[str, AsyncScript] = {
            name: self._client.register_script(script_text(name)) for name in (*SCRIPTS, *SESSION_SCRIPTS)
        }
        self._warned = False

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    async def run(self, script: str, *arguments: Argument) -> Any:
        """Runs a script on the trial. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self._scripts[script]([self.keys.prefix], arguments)

    async def run_on_session(self, script: str, session_id: str, *arguments: Argument) -> Any:
        """Runs a session script on one session. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self._scripts[script]([self.keys.session(session_id)], arguments)

    def pipeline(self) -> Pipeline:
        """Reads to send together, for `execute`. What must be seen at one moment is a script: a full Redis refuses MULTI."""
        return self._client.pipeline(transaction=False)

    async def execute(self, pipeline: Pipeline) -> list[Any]:
        """The answers of a pipeline, in order. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await pipeline.execute()

    async def command(self, *parts: Argument) -> Any:
        """One plain Redis command. Raises `Unavailable`."""
        with failures_as_unavailable():
            return await self._untyped.execute_command(*parts)

    async def health(self) -> str:
        """The word ok, or why Redis cannot be used. Warns once where Redis would lose acknowledged data."""
        try:
            info = await self._client.info("persistence")
        except (RedisError, OSError) as error:
            return f"redis at {self._address}: {error}"
        if info.get("loading"):
            return f"redis at {self._address} is loading its data"
        if not info.get("aof_enabled") and not self._warned:
            self._warned = True
            log.warning("redis: appendonly is off, acknowledged data can be lost; start it with --appendonly yes")
        return "ok"


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or parts.path}:{parts.port or 6379}"
