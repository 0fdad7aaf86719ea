"""Owns calling the endpoints of the hottest routes without FastAPI's argument handling, which costs more than their own work.

The endpoint is an ordinary FastAPI endpoint and stays in the OpenAPI document; what its signature asks for is found here once and filled
in by hand. Refuses, when the route is added, any parameter that it does not know.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from inspect import Parameter, signature
from typing import Any, cast, get_args, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from services.common.app import hot_route
from services.common.errors import BadRequest
from services.common.ids import is_valid_id

Endpoint = Callable[..., Awaitable[Any]]
Fill = Callable[[Request], Awaitable[Any]]
"""Finds the value of one parameter."""

JSON = "application/json"


class LeanRoutes:
    """Adds routes whose endpoints take a request, ids of the path, headers, one JSON body that is a wire schema, and what is ``given``.

    ``guard`` raises for whoever may not come in, ``body_of`` lends the raw body, ``given`` finds the values of other types of parameters.
    """

    def __init__(
        self,
        guard: Fill,
        body_of: Callable[[Request], AbstractAsyncContextManager[bytes]],
        given: Mapping[Any, Fill] | None = None,
    ) -> None:
        self._guard = guard
        self._body_of = body_of
        self._given = {Request: _itself, **(given or {})}

    def add(self, routes: APIRouter, path: str, endpoint: Endpoint, method: str, status: int = 200, **documented: Any) -> None:
        """One route, which answers with a wire schema or a response. ``documented`` goes to FastAPI, for the OpenAPI document."""
        fills = self._fills(endpoint, path)

        async def handle(request: Request) -> Response:
            await self._guard(request)
            answer = await endpoint(**{name: await fill(request) for name, fill in fills.items()})
            if isinstance(answer, Response):
                return answer
            return Response(cast("BaseModel", answer).model_dump_json(), status, media_type=JSON)

        # The hot route is taken; the other one only documents.
        routes.routes.append(hot_route(routes.prefix + path, handle, method))
        routes.add_api_route(path, endpoint, methods=[method], status_code=status, **documented)

    def _fills(self, endpoint: Endpoint, path: str) -> Mapping[str, Fill]:
        hints = get_type_hints(endpoint, include_extras=True)
        parameters = signature(endpoint).parameters
        return {name: self._fill(parameter, hints[name], path) for name, parameter in parameters.items()}

    def _fill(self, parameter: Parameter, hint: Any, path: str) -> Fill:
        name = parameter.name
        if hint in self._given:
            return self._given[hint]
        if f"{{{name}}}" in path:
            return _from_path(name)
        if (schema := _schema(hint)) is not None:
            return self._from_body(schema, optional=parameter.default is None)
        if name.startswith("x_"):
            return _from_header(name.replace("_", "-"), hint)
        raise TypeError(f"{name}: {hint} cannot be filled in here; use FastAPI's add_api_route")

    def _from_body(self, schema: type[BaseModel], *, optional: bool) -> Fill:
        nothing = (b"", b"null") if optional else ()

        async def fill(request: Request) -> BaseModel | None:
            async with self._body_of(request) as body:
                try:
                    return None if body in nothing else schema.model_validate_json(body)
                except ValidationError as error:
                    raise _invalid(error, "body") from error

        return fill


async def _itself(request: Request) -> Request:
    return request


def path_id(request: Request, name: str) -> str:
    """An id from the path, for routes that skip FastAPI's checks. Raises `BadRequest`."""
    value = request.path_params[name]
    if not is_valid_id(value):
        raise BadRequest(f"{name}: {value!r} is not an id; use letters, digits and . _ : - (at most 160)", param=name)
    return value


def _schema(hint: Any) -> type[BaseModel] | None:
    """The wire schema that a parameter is, or is where it is not None."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _from_path(name: str) -> Fill:
    async def fill(request: Request) -> str:
        return path_id(request, name)

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
