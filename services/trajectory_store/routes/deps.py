"""Owns what all routes share: the store, the admin key, body limits, waiting for a client that may be gone."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.routing import Route

from services.common.app import require_admin
from services.common.errors import BadRequest, TooLarge
from services.common.http import MSGPACK
from services.common.ids import ID_PATTERN, is_valid_id
from services.trajectory_store.store import Store

MAX_BODY = 64 * 2**20
"""Bytes. A trajectory of thousands of turns fits; what does not fit is a mistake."""

PathId = Annotated[str, Path(pattern=ID_PATTERN.pattern)]


def store_of(request: Request) -> Store:
    """The store of this app."""
    return request.app.state.store


async def _store(request: Request) -> Store:
    return store_of(request)


StoreDep = Annotated[Store, Depends(_store)]
"""Async, because FastAPI sends plain functions through a thread pool."""


async def guard(request: Request) -> None:
    """Admin key and announced body size. Async for the same reason."""
    require_admin(request)
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY:
        raise _too_large()


def guarded_router(tag: str) -> APIRouter:
    """A router whose routes need the admin key where one is set."""
    return APIRouter(prefix="/v1", tags=[tag], dependencies=[Depends(guard)])


def add_raw_route(routes: APIRouter, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str) -> None:
    """A guarded route without FastAPI's argument handling, which costs as much as the work of the hottest routes.

    Such a route checks its arguments itself and is documented in docs/wire.md only.
    """

    async def handle(request: Request) -> Response:
        request.scope["route"] = route
        await guard(request)
        return await endpoint(request)

    route = Route(routes.prefix + path, handle, methods=[method])
    routes.routes.append(route)


async def read_body(request: Request) -> bytes:
    """The raw body. Raises `TooLarge` while reading, so that a body without a length cannot fill the memory."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise _too_large()
        chunks.append(chunk)
    return b"".join(chunks)


def path_id(request: Request, name: str) -> str:
    """An id from the path, for routes that skip FastAPI's checks. Raises `BadRequest`."""
    value = request.path_params[name]
    if not is_valid_id(value):
        raise BadRequest(f"{name}: {value!r} is not an id; use letters, digits and . _ : - (at most 160)", param=name)
    return value


def gone(request: Request) -> Callable[[], Awaitable[bool]]:
    """Asks whether the client of a waiting request went away."""
    return request.is_disconnected


def msgpack(body: bytes) -> Response:
    """A msgpack answer."""
    return Response(body, media_type=MSGPACK)


def _too_large() -> TooLarge:
    return TooLarge(f"the body is larger than {MAX_BODY // 2**20} MiB")
