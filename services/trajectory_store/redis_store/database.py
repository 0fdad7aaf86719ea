"""Owns talking to Redis: the scripts, deadlines, and what a Redis failure means to a caller.

Every failure of Redis is a 503 that says what happened; the client reconnects by itself, so a Redis that restarts needs no
restart of the store. A script may run twice where an answer was lost, so every script gives the same result when repeated.
"""

import hashlib
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
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
from services.trajectory_store.keys import AUDIT_TTL_S, ENDED_BATCH_TTL_S, METRICS_KEPT, PREFIXES_KEPT, TRIALS, Keys, lua_keys
from services.trajectory_store.redis_store.connection import Client, close, connect, without_secrets
from services.trajectory_store.redis_store.link import Argument, Command, Link, open_link
from services.trajectory_store.states import lua_edges

log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
TRANSIENT = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
"""Error codes of Redis that say "not now" rather than "never"."""
TYPED: Mapping[type[ResponseError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
    NoPermissionError: "NOPERM",
}
"""redis-py turns some codes into types and takes them off the text; inside scripts only a Redis from 7 on answers with the bare code."""
SESSION_SCRIPTS = ("session_begin", "session_record", "session_reward", "session_fields", "session_seal", "session_view")
"""Their KEYS[1] is the session: two of them run for every call of the policy, so they come without the library.
KEYS[1] of all others is the prefix of the trial."""


@cache
def script_text(name: str) -> str:
    """The source of one script as Redis gets it."""
    folder = files("services.trajectory_store") / "lua"
    source = (folder / f"{name}.lua").read_text(encoding="utf-8")
    if name in SESSION_SCRIPTS:
        return source
    return "\n".join([lua_keys(), lua_edges(), _lua_constants(), (folder / "lib.lua").read_text(encoding="utf-8"), source])


def _lua_constants() -> str:
    constants = {
        "EVENTS_KEPT": EVENTS_KEPT,
        "EXAMPLES": EXAMPLES_PER_REASON,
        "ENDED_BATCH_TTL_S": ENDED_BATCH_TTL_S,
        "METRICS_KEPT": METRICS_KEPT,
        "PREFIXES_KEPT": PREFIXES_KEPT,
        "AUDIT_TTL_S": AUDIT_TTL_S,
    }
    return "\n".join(f"local {name} = {value}" for name, value in constants.items())


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis knows it."""

    text: str
    sha: str


Run = tuple[Script, str, Sequence[Argument]]
"""A script, its key and its arguments."""


@cache
def script(name: str) -> Script:
    """One script, by the name of its file."""
    text = script_text(name)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


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
        self.link: Link = open_link(self.client)
        self._address = without_secrets(url)
        self.risks: dict[str, str] = {}
        """How this Redis could lose acknowledged data, as of the last look."""
        self.run_id = ""
        """Of the Redis process that answered at the last look."""
        self.replaced = 0
        """How often another process answered than before, whose predecessor may have acknowledged more than it kept."""

    async def close(self) -> None:
        """Closes all connections."""
        await self.link.close()
        await close(self.client)

    async def health(self) -> str:
        """``ok`` with what could lose data, or why Redis cannot be used. Warns where a risk is new."""
        try:
            info, settings = await self._look()
        except (RedisError, OSError) as error:
            return f"redis at {self._address}: {error}"
        if reason := refusal(info):
            return f"redis at {self._address}: {reason}"
        run_id = str(info.get("run_id", ""))
        self.replaced += self.run_id not in ("", run_id) and settings.get("appendfsync") != "always"
        self.run_id = run_id
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
        [names] = await self.ask(TRIALS, [("SMEMBERS", TRIALS)])
        return sorted(_text(name) for name in names)

    async def register(self, trial: str) -> None:
        """Notes that a trial exists. Raises `Unavailable`."""
        await self.ask(TRIALS, [("SADD", TRIALS, trial)])

    async def ask(self, at: str, commands: Sequence[Command]) -> list[Any]:
        """The plain answers of some commands, in order; ``at`` is a key of the node that is meant. Raises `Unavailable`."""
        with failures_as_unavailable():
            answers = await self.link.send(at, commands)
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
            return answers

    async def evaluate(self, wanted: Script, key: str, arguments: Sequence[Argument]) -> Any:
        """The answer of a script, which Redis is told where it does not have it. Raises `Unavailable`."""
        [answer] = await self.evaluate_all([(wanted, key, arguments)])
        return answer

    async def evaluate_all(self, runs: Sequence[Run]) -> list[Any]:
        """The answers of some scripts, which run in order. Raises `Unavailable`, where some may have run."""
        if not runs:
            return []
        at = runs[0][1]
        with failures_as_unavailable():
            answers = await self.link.send(at, [("EVALSHA", wanted.sha, 1, key, *arguments) for wanted, key, arguments in runs])
            missing = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            texts = [("EVAL", runs[place][0].text, 1, runs[place][1], *runs[place][2]) for place in missing]
            for place, answer in zip(missing, await self.link.send(at, texts), strict=True):
                answers[place] = answer
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
            return answers


class Database:
    """The part of a Redis that belongs to one trial."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self.server = server
        self.keys = keys

    async def run(self, name: str, *arguments: Argument) -> Any:
        """Runs a script on the trial. Raises `Unavailable`."""
        return await self.server.evaluate(script(name), self.keys.prefix, arguments)

    async def run_on_session(self, name: str, session_id: str, *arguments: Argument) -> Any:
        """Runs a session script on one session. Raises `Unavailable`."""
        return await self.server.evaluate(script(name), self.keys.session(session_id), arguments)

    async def run_on_sessions(self, wanted: Sequence[tuple[str, str, Sequence[Argument]]]) -> list[Any]:
        """Runs session scripts, each named with its session and its arguments, in order. Raises `Unavailable`, where some may have run."""
        return await self.server.evaluate_all([(script(name), self.keys.session(session_id), args) for name, session_id, args in wanted])

    async def many(self, commands: Sequence[Command]) -> list[Any]:
        """The plain answers of some commands that need not be seen at one moment, in order. Raises `Unavailable`."""
        return await self.server.ask(self.keys.prefix, commands)

    async def command(self, *parts: Argument) -> Any:
        """The plain answer of one command: a hash is a flat list. Raises `Unavailable`."""
        [answer] = await self.many([parts])
        return answer


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash from its flat list."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
