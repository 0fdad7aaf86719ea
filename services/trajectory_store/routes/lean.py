"""Owns calling the endpoints of the hottest routes without FastAPI's argument handling, which costs more than their own work.

The endpoint is an ordinary FastAPI endpoint and stays in the OpenAPI document; what its signature asks for is found here once and filled
in by hand. Refuses, when the route is added, any parameter that it does not know.
"""

from collections.abc import Awaitable, Callable, Mapping
from inspect import signature
from typing import Any, cast, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from services.common.app import hot_route
from services.trajectory_store.routes.deps import PathId, StoreDep, body_of, guard, path_id, store_of

Endpoint = Callable[..., Awaitable[Any]]
Fill = Callable[[Request], Awaitable[Any]]
"""Finds the value of one parameter."""

JSON = "application/json"


def add_lean_route(routes: APIRouter, path: str, endpoint: Endpoint, method: str, status: int = 200, **documented: Any) -> None:
    """A guarded route whose endpoint takes a store, a request, ids of the path, a header, or one JSON body that is a wire schema.

    It answers with a wire schema or a response. ``documented`` goes to FastAPI, for the OpenAPI document.
    """
    fills = _fills(endpoint, path)

    async def handle(request: Request) -> Response:
        await guard(request)
        answer = await endpoint(**{name: await fill(request) for name, fill in fills.items()})
        if isinstance(answer, Response):
            return answer
        return Response(cast("BaseModel", answer).model_dump_json(), status, media_type=JSON)

    # The hot route is taken; the other one only documents.
    routes.routes.append(hot_route(routes.prefix + path, handle, method))
    routes.add_api_route(path, endpoint, methods=[method], status_code=status, **documented)


def _fills(endpoint: Endpoint, path: str) -> Mapping[str, Fill]:
    hints = get_type_hints(endpoint, include_extras=True)
    return {name: _fill(name, hints[name], path) for name in signature(endpoint).parameters}


def _fill(name: str, hint: Any, path: str) -> Fill:
    if hint is Request:
        return _itself
    if hint is StoreDep:
        return store_of
    if hint is PathId and f"{{{name}}}" in path:
        return _from_path(name)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return _from_body(hint)
    if name.startswith("x_"):
        return _from_header(name.replace("_", "-"), hint)
    raise TypeError(f"{name}: {hint} cannot be filled in here; use FastAPI's add_api_route")


async def _itself(request: Request) -> Request:
    return request


def _from_path(name: str) -> Fill:
    async def fill(request: Request) -> str:
        return path_id(request, name)

    return fill


def _from_body(schema: type[BaseModel]) -> Fill:
    async def fill(request: Request) -> BaseModel:
        async with body_of(request) as body:
            try:
                return schema.model_validate_json(body)
            except ValidationError as error:
                raise _invalid(error, "body") from error

    return fill


def _from_header(name: str, hint: Any) -> Fill:
    adapter: TypeAdapter[Any] = TypeAdapter(hint)

    async def fill(request: Request) -> Any:
        try:
            return adapter.validate_python(request.headers.get(name))
        except ValidationError as error:
            raise _invalid(error, "header", name) from error

    return fill


def _invalid(error: ValidationError, *place: str) -> RequestValidationError:
    return RequestValidationError(
        [{**item, "loc": (*place, *item["loc"])} for item in error.errors(include_url=False, include_context=False)]
    )
