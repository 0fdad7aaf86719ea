"""Owns the client that services use to talk to each other: one connection pool, a deadline on every request, retries that end.

aiohttp, not httpx, because the two hops of each policy call are the hot path and aiohttp costs a third of the CPU per request
(docs/benchmarks.md). Refuses to retry for ever: the budget is a number of seconds the caller chose.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
import orjson
from yarl import URL

from services.common.errors import RemoteError

MSGPACK = "application/msgpack"


class ServiceClient:
    """A client of one service.

    ``timeout_s`` bounds one attempt, ``retry_s`` bounds all attempts together (0 = one attempt). Only failures that may pass are
    retried (`RemoteError.retryable`); every route we call is idempotent by client-chosen ids, so a retry after a lost answer is safe.
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
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            # limit=0: admission is bounded by the callers' own queues, a second bound here only hides waiting.
            # No cookies: services set none, and looking for them is part of every request.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())
        return self._session

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
        """`request` that also gives the headers of the answer (names in any case)."""
        payload = data if data is not None else (orjson.dumps(json) if json is not None else None)
        merged = {**self._headers, **(headers or {})}
        if payload is not None:
            merged["Content-Type"] = content_type
        budget = self._retry_s if retry_s is None else retry_s
        give_up_at = time.monotonic() + budget
        pause = 0.05
        while True:
            try:
                return await self._attempt(method, path, payload, merged, timeout_s or self._timeout_s)
            except RemoteError as error:
                wait = pause * random.uniform(0.5, 1.5)
                if not error.retryable or time.monotonic() + wait > give_up_at:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, 2.0)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, data: bytes, headers: Mapping[str, str] | None = None, timeout_s: float, silence_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Sends one request, without retries, and gives the body of a 2xx answer as it comes.

        ``timeout_s`` bounds the whole, ``silence_s`` the time between two chunks. Raises `RemoteError`, in mid-answer too.
        """
        merged = {**self._headers, **(headers or {}), "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_read=silence_s)
        try:
            async with self._pool().request(method, _url(self.base_url + path), data=data, headers=merged, timeout=timeout) as response:
                if response.status >= 300:
                    raise self._remote_error(response.status, await response.read())
                yield response.content.iter_any()
        except TimeoutError:
            raise RemoteError(
                self.name, None, "timeout", f"{method} {path} was silent for {silence_s:g} s or took over {timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteError(self.name, None, "unreachable", f"{method} {self.base_url}{path}: {error!r}") from error

    async def _attempt(
        self, method: str, path: str, payload: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[bytes, Mapping[str, str]]:
        url, timeout = _url(self.base_url + path), _timeout(timeout_s)
        try:
            async with self._pool().request(method, url, data=payload, headers=headers, timeout=timeout) as response:
                body = await response.read()
        except TimeoutError:
            raise RemoteError(self.name, None, "timeout", f"{method} {path} took over {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RemoteError(self.name, None, "unreachable", f"{method} {self.base_url}{path}: {error!r}") from error
        if response.status >= 300:
            raise self._remote_error(response.status, body)
        return body, response.headers

    def _remote_error(self, status: int, body: bytes) -> RemoteError:
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


# Both are made for every request and are mostly the same ones: the routes of the sessions under way, a handful of deadlines.
@lru_cache(8192)
def _url(text: str) -> URL:
    return URL(text)


@lru_cache(64)
def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)
