"""A reverse proxy between our proxy and SGLang that changes nothing and keeps what both said."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
OURS_TO_SET = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-encoding"})


@dataclass
class Exchange:
    """One request that was passed on."""

    method: str
    path: str
    body: Json
    status: int = 0
    raw: bytes = b""

    @property
    def events(self) -> list[Json]:
        """The answer: of a stream all its events, else the one object."""
        if not self.raw.startswith(b"data:"):
            return [json.loads(self.raw)]
        lines = [line.removeprefix(b"data:").strip() for line in self.raw.split(b"\n") if line.startswith(b"data:")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def meta(self) -> Json:
        """``meta_info`` at the end of a generation."""
        return self.events[-1]["meta_info"]


@dataclass
class Tap:
    """Passes everything on to ``upstream``."""

    upstream: str
    exchanges: list[Exchange] = field(default_factory=list)

    def app(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None]:
            async with httpx.AsyncClient(base_url=self.upstream, timeout=600) as self._client:
                yield

        return Starlette(routes=[Route("/{path:path}", self._pass_on, methods=["GET", "POST", "PUT"])], lifespan=lifespan)

    def of(self, path: str) -> list[Exchange]:
        """What went to one route, in order."""
        return [exchange for exchange in self.exchanges if exchange.path == path]

    def generations(self, call_id: str) -> list[Exchange]:
        """The submissions of one call, in order."""
        return [exchange for exchange in self.of("/generate") if str(exchange.body["rid"]).rpartition(".")[0] == call_id]

    async def _pass_on(self, request: Request) -> StreamingResponse:
        content = await request.body()
        exchange = Exchange(request.method, request.url.path, json.loads(content) if content else {})
        if request.method != "GET":
            self.exchanges.append(exchange)
        asked = self._client.build_request(
            request.method, request.url.path, params=request.query_params, content=content, headers=_kept(request.headers)
        )
        answer = await self._client.send(asked, stream=True)
        exchange.status = answer.status_code

        async def body() -> AsyncGenerator[bytes]:
            try:
                async for part in answer.aiter_bytes():
                    exchange.raw += part
                    yield part
            finally:
                await answer.aclose()

        return StreamingResponse(body(), answer.status_code, headers=_kept(answer.headers))


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in OURS_TO_SET}
