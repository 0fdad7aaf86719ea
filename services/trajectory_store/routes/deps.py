"""Owns what all routes share: the store of the trial, the admin key, body limits, waiting for a client that may be gone."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import zstandard
from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from services.common.app import Endpoint, check_admin, hot_route
from services.common.errors import BadRequest
from services.common.http import MSGPACK
from services.common.ids import ID_PATTERN
from services.common.lean import LeanRoutes
from services.trajectory_store.admission import BodyBudget
from services.trajectory_store.store import Store
from services.trajectory_store.tenants import Tenants

PathId = Annotated[str, Path(pattern=ID_PATTERN.pattern)]


def tenants_of(request: Request) -> Tenants:
    """The trials of this app."""
    return request.app.state.tenants


async def store_of(request: Request) -> Store:
    """The store of the trial that the URL names. Raises `NotFound` where a trial is read that does not exist."""
    trial: str | None = request.scope["state"].get("trial")
    return await tenants_of(request).of(trial, writes=request.method != "GET")


StoreDep = Annotated[Store, Depends(store_of)]


def _budget(request: Request) -> BodyBudget:
    return request.app.state.bodies


async def guard(request: Request) -> None:
    """Admin key and announced body size. Async, because FastAPI sends plain functions through a thread pool."""
    check_admin(request)
    announced = request.headers.get("content-length", "0")
    if announced.isdigit():
        _budget(request).check(int(announced))


def guarded_router(tag: str) -> APIRouter:
    """A router whose routes need the admin key where one is set."""
    return APIRouter(prefix="/v1", tags=[tag], dependencies=[Depends(guard)])


def add_raw_route(routes: APIRouter, path: str, endpoint: Endpoint, method: str) -> None:
    """A guarded `hot_route`, documented in docs/wire.md only."""

    async def handle(request: Request) -> ASGIApp:
        await guard(request)
        return await endpoint(request)

    routes.routes.append(hot_route(routes.prefix + path, handle, method))


@asynccontextmanager
async def body_of(request: Request) -> AsyncGenerator[bytes]:
    """The raw body, which counts against the budget until the block is left.

    Raises `TooLarge` or `Busy` while reading, so that bodies cannot fill the memory, and `BadRequest` for a broken zstd body.
    """
    budget = _budget(request)
    with budget.hold() as held:
        chunks: list[bytes] = []
        try:
            async for chunk in request.stream():
                held.add(len(chunk))
                chunks.append(chunk)
        except ClientDisconnect as error:
            raise BadRequest("body: it ended early, the client is gone", code="client_gone") from error
        body = b"".join(chunks)
        yield _unzip(body, budget) if request.headers.get("content-encoding") == "zstd" else body


def _unzip(body: bytes, budget: BodyBudget) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(body) as reader:
            plain = reader.read(budget.max_body + 1)
    except zstandard.ZstdError as error:
        raise BadRequest(f"body: Content-Encoding is zstd and the body is not: {error}") from error
    budget.check(len(plain))
    return plain


def gone(request: Request) -> Callable[[], Awaitable[bool]]:
    """Asks whether the client of a waiting request went away."""
    return request.is_disconnected


def msgpack(body: bytes) -> Response:
    """A msgpack answer."""
    return Response(body, media_type=MSGPACK)


LEAN = LeanRoutes(guard, body_of, {StoreDep: store_of})
"""Adds the hottest routes."""
