"""Owns what every service has in common as an HTTP application: health, metrics, version, request ids, error rendering, admin key.

A service builds its app with `create_app`, adds its own routers and keeps its state in ``app.state``. Refuses to know any service.
"""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common import logs
from services.common.errors import BadRequest, Forbidden, ServiceError, Unauthorized
from services.common.ids import is_valid_id, new_id

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[ASGIApp]]
"""Gives the answer as an ASGI application, which every response is."""
Readiness = Callable[[], Awaitable[dict[str, str]]]
"""Checks the dependencies: name -> "ok", "ok, " and what should still be known, or the reason it is not ok."""

ADMIN_KEY_ENV = "FRONTDESK_ADMIN_KEY"
WEAK_KEYS = frozenset({"", "admin", "changeme", "secret", "areal-admin-key", "frontdesk"})
OPENAI_PREFIXES = ("/v1/chat", "/v1/sessions/", "/v1/models", "/v1/responses", "/v1/messages", "/chat/", "/responses")
"""Routes that answer errors in OpenAI's envelope, because OpenAI SDKs read them."""


class Metrics:
    """The Prometheus registry of one app. Names are ``frontdesk_<service>_<noun>_<unit>``."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self._prefix = f"frontdesk_{service}_"
        self.requests = self.counter("http_requests_total", "Requests by route and status", ("method", "route", "status"))
        self.latency = self.histogram("http_request_seconds", "Time to answer by route", ("route",))
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts and times a request."""
        key = (method, route, status)
        # Looking a labelled metric up by its labels costs more than counting does.
        if (found := self._answered.get(key)) is None:
            found = self._answered[key] = (self.requests.labels(method, route, str(status)), self.latency.labels(route))
        found[0].inc()
        found[1].observe(seconds)

    def counter(self, name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(self._prefix + name, doc, labels, registry=self.registry)

    def gauge(self, name: str, doc: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(self._prefix + name, doc, labels, registry=self.registry)

    def histogram(self, name: str, doc: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(self._prefix + name, doc, labels, registry=self.registry)


class RequestContext:
    """ASGI application around another: gives each request an id, forwards ``traceparent`` to the log, counts and times it.

    Pure ASGI, because Starlette's BaseHTTPMiddleware costs a task per request and breaks streaming cancellation.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if is_valid_id(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        logs.bind(request_id=request_id)
        if traceparent := headers.get(b"traceparent"):
            logs.bind(traceparent=traceparent.decode("latin-1"))
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.answered(scope["method"], route, status, time.perf_counter() - started)


class Service(FastAPI):
    """A FastAPI application with a ``front``: what every HTTP request meets first, which serves the routes made by `hot_route`."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self
            await self.front(scope, receive, send)
        else:
            await self.behind(scope, receive, send)

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's own stack, for everything else."""
        await super().__call__(scope, receive, send)


class HotRoutes:
    """ASGI application: serves the routes made by `hot_route`, and hands on what is for the others."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = [(route.path_regex, route.methods or (), route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        for pattern, methods, route in self._routes:
            if method in methods and (found := pattern.match(path)):
                scope["path_params"], scope["route"] = found.groupdict(), route
                request = Request(scope, receive)
                try:
                    response = await route.endpoint(request)
                except Exception as error:  # noqa: BLE001 - the request boundary
                    response = await _render(request, error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Stopping:
    """Whether the service was told to stop; a request that is kept open ends itself then. Waiting for it costs no timer and no task."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Wakes all that wait."""
        self.begun = True
        for task in self._waiting:
            task.cancel()

    async def or_next(self, receive: Receive) -> Message | None:
        """The next message of a request; None where the service stops first."""
        task = asyncio.current_task()
        if task is None or self.begun:
            return None
        self._waiting.add(task)
        try:
            return await receive()
        except asyncio.CancelledError:
            if not self.begun:
                raise
            task.uncancel()
            return None
        finally:
            self._waiting.discard(task)


def hot_route(path: str, endpoint: Endpoint, method: str) -> Route:
    """A route without FastAPI's handling of arguments and errors, which costs more than the work of the hottest routes.

    It checks its arguments itself. A FastAPI route of the same path and method may stand beside it for the OpenAPI document.
    """
    return Route(path, endpoint, methods=[method])


def create_app(service: str, *, lifespan: Any, readiness: Readiness, routers: list[APIRouter]) -> Service:
    """An app with the conventions every service follows (docs/architecture.md). ``app.state.metrics`` is its `Metrics`.

    ``app.state.stopping`` is its `Stopping`.
    """
    app = Service(title=f"Frontdesk {service}", version=package_version("frontdesk"), lifespan=lifespan)
    app.state.metrics = Metrics(service)
    app.state.stopping = Stopping()
    hot = [route for router in routers for route in router.routes if type(route) is Route]
    app.front = RequestContext(HotRoutes(app.behind, hot), app.state.metrics)
    for kind in _RENDERERS:
        app.add_exception_handler(kind, _render)
    app.add_exception_handler(Exception, _internal_error)
    app.include_router(_common_routes(service, readiness))
    for router in routers:
        app.include_router(router)
    return app


def _common_routes(service: str, readiness: Readiness) -> APIRouter:
    router = APIRouter(tags=["service"])

    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "service": service}

    async def readyz(response: Response) -> dict[str, Any]:
        """The dependencies answer; 503 with the reasons where they do not."""
        checks = await readiness()
        ready = all(reason == "ok" or reason.startswith("ok, ") for reason in checks.values())
        response.status_code = 200 if ready else 503
        return {"ready": ready, "checks": checks}

    async def metrics(request: Request) -> Response:
        """Prometheus text."""
        return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def version() -> dict[str, str]:
        """What runs here."""
        return {"service": service, "version": package_version("frontdesk"), "git": os.environ.get("FRONTDESK_GIT_SHA", "")}

    router.add_api_route("/healthz", healthz)
    router.add_api_route("/health", healthz, include_in_schema=False)
    router.add_api_route("/readyz", readyz, responses={503: {"description": "Not ready, with the reasons"}})
    router.add_api_route("/metrics", metrics)
    router.add_api_route("/version", version)
    return router


async def _render(request: Request, error: Exception) -> Response:
    """The answer to what an endpoint raised."""
    render = next((render for kind, render in _RENDERERS.items() if isinstance(error, kind)), None)
    return await _internal_error(request, error) if render is None else render(request, error)


def _answer(request: Request, error: ServiceError) -> Response:
    if request.url.path.startswith(OPENAI_PREFIXES):
        return JSONResponse(error.openai(), error.status, error.headers())
    body = error.problem(request.state.request_id)
    return JSONResponse(body, error.status, error.headers(), media_type="application/problem+json")


def _service_error(request: Request, error: Any) -> Response:
    if error.status >= 500:
        log.warning("%s: %s", error.code, error.detail)
    return _answer(request, error)


def _validation_error(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    detail = f"{where}: {first['msg']}"
    failure = BadRequest(detail, code="validation_error", param=where, extra={"errors": len(error.errors())})
    failure.status = 400 if request.url.path.startswith(OPENAI_PREFIXES) else 422
    return _answer(request, failure)


def _framework_error(request: Request, error: Any) -> Response:
    """What Starlette and FastAPI refuse themselves: a path or method that no route has, a body that is not even text."""
    status = HTTPStatus(error.status_code)
    failure = ServiceError(f"{request.method} {request.url.path}: {error.detail}", code=status.name.lower())
    failure.status, failure.title = status.value, status.phrase
    answer = _answer(request, failure)
    answer.headers.update(error.headers or {})
    return answer


_RENDERERS: dict[type[Exception], Callable[[Request, Any], Response]] = {
    ServiceError: _service_error,
    RequestValidationError: _validation_error,
    HTTPException: _framework_error,
}


async def _internal_error(request: Request, error: Exception) -> Response:
    log.error("unhandled error on %s", request.url.path, exc_info=error)
    return _answer(request, ServiceError(f"internal error, see the log for request {request.state.request_id}"))


def admin_key() -> str:
    """The admin key of this process, from the environment only ("" when none is set)."""
    return os.environ.get(ADMIN_KEY_ENV, "")


def bearer(request: Request) -> str:
    """The key a request presents, as a bearer token or as ``x-api-key``."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


async def require_admin(request: Request) -> None:
    """`check_admin` as a FastAPI dependency. Async, because FastAPI sends plain functions through a thread pool."""
    check_admin(request)


def check_admin(request: Request) -> None:
    """Raises where the admin key is missing or wrong. Open only where no key is set, which `serve` allows on loopback alone."""
    expected = admin_key()
    if not expected:
        return
    given = bearer(request)
    if not given:
        raise Unauthorized(f"this route needs the admin key (${ADMIN_KEY_ENV}) as a bearer token")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Forbidden("the admin key does not match")


def admin_headers() -> dict[str, str]:
    """Headers with which one service calls another's admin routes."""
    return {"Authorization": f"Bearer {admin_key()}"} if admin_key() else {}
