"""Owns the client that services use to talk to each other: one connection pool, a deadline on every request, retries that end.

Refuses to retry for ever: the budget is a number of seconds the caller chose. How requests go over the wire is `http1`'s.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import orjson

from services.common.errors import RemoteError
from services.common.http1 import ConnectionFailed, Dialogue, Pool

Value = TypeVar("Value")

MSGPACK = "application/msgpack"


class ServiceClient:
    """A client of one service.

    ``timeout_s`` bounds one attempt (`math.inf`: the caller has a deadline of its own), ``retry_s`` bounds all attempts together
    (0 = one attempt). Only failures that may pass are retried (`RemoteError.retryable`); every route we call is idempotent by
    client-chosen ids, so a retry after a lost answer is safe.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self._retry_s = retry_s
        self._headers = dict(headers or {})
        self._pool = Pool(self.base_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the pool."""
        await self._pool.close()

    async def get(self, path: str, **kwargs: Any) -> Any:
        """GET, JSON in return."""
        return orjson.loads(await self.request("GET", path, **kwargs) or b"null")

    async def post(self, path: str, body: Any = None, **kwargs: Any) -> Any:
        """POST JSON, JSON in return (None for an empty answer)."""
        return orjson.loads(await self.request("POST", path, json=body if body is not None else {}, **kwargs) or b"null")

    async def put(self, path: str, body: Any = None, **kwargs: Any) -> Any:
        """PUT JSON, JSON in return (None for an empty answer)."""
        return orjson.loads(await self.request("PUT", path, json=body if body is not None else {}, **kwargs) or b"null")

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry_s: float | None = None,
    ) -> bytes:
        """Sends one request and returns the body of a 2xx answer.

        ``json`` may be anything orjson takes; ``data`` is sent as it is with ``content_type``. Raises `RemoteError`.
        """
        body, _ = await self.request_full(
            method,
            path,
            json=json,
            data=data,
            content_type=content_type,
            headers=headers,
            timeout_s=timeout_s,
            retry_s=retry_s,
        )
        return body

    async def request_full(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry_s: float | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """`request` that also gives the headers of the answer (lower-case names)."""
        payload = data if data is not None else (orjson.dumps(json) if json is not None else None)
        merged = {**self._headers, **(headers or {})}
        if payload is not None:
            merged["Content-Type"] = content_type
        return await self.repeated(partial(self._attempt, method, path, payload, merged, timeout_s or self.timeout_s), retry_s)

    async def repeated(self, attempt: Callable[[], Awaitable[Value]], retry_s: float | None = None) -> Value:
        """What ``attempt`` brings, made again while it fails with something that may pass and the budget lasts. Raises `RemoteError`."""
        give_up_at = time.monotonic() + (self._retry_s if retry_s is None else retry_s)
        pause = 0.05
        while True:
            try:
                return await attempt()
            except RemoteError as error:
                wait = pause * random.uniform(0.5, 1.5)
                if not error.retryable or time.monotonic() + wait > give_up_at:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, 2.0)

    async def dialogue(self, path: str, heard: Callable[[], None], *, content_type: str = MSGPACK) -> Dialogue:
        """Begins a POST whose body and answer go on beside each other. Raises `OSError`."""
        return await self._pool.dialogue("POST", path, {**self._headers, "Content-Type": content_type}, heard)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, data: bytes, headers: Mapping[str, str] | None = None, timeout_s: float, silence_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Sends one request, without retries, and gives the body of a 2xx answer as it comes.

        ``timeout_s`` bounds the whole, ``silence_s`` the time between two chunks. Raises `RemoteError`, in mid-answer too.
        """
        merged = {**self._headers, **(headers or {}), "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout_s), self._pool.stream(method, path, data, merged, silence_s) as (status, parts):
                if status >= 300:
                    raise self.remote_error(status, b"".join([part async for part in parts]))
                yield parts
        except TimeoutError:
            raise RemoteError(
                self.name, None, "timeout", f"{method} {path} was silent for {silence_s:g} s or took over {timeout_s:g} s"
            ) from None
        except (ConnectionFailed, OSError) as error:
            raise RemoteError(self.name, None, "unreachable", f"{method} {self.base_url}{path}: {error!r}") from error

    async def _attempt(
        self, method: str, path: str, payload: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[bytes, Mapping[str, str]]:
        try:
            async with asyncio.timeout(None if timeout_s == inf else timeout_s):
                status, answered, body = await self._pool.request(method, path, payload or b"", headers)
        except TimeoutError:
            raise RemoteError(self.name, None, "timeout", f"{method} {path} took over {timeout_s:g} s") from None
        except (ConnectionFailed, OSError) as error:
            raise RemoteError(self.name, None, "unreachable", f"{method} {self.base_url}{path}: {error!r}") from error
        if status >= 300:
            raise self.remote_error(status, body)
        return body, answered

    def remote_error(self, status: int, body: bytes) -> RemoteError:
        """What an answer other than 2xx says."""
        try:
            answer: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        fields: Any = cast("dict[str, Any]", answer).get("error", answer) if isinstance(answer, dict) else None
        if not isinstance(fields, dict):
            return RemoteError(self.name, status, "error", body[:500].decode(errors="replace"))
        known = cast("dict[str, Any]", fields)
        detail = known.get("detail") or known.get("message") or ""
        return RemoteError(self.name, status, str(known.get("code") or "error"), str(detail))
