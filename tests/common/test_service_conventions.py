"""What every service has in common over HTTP: health, ids, errors in the right form, the admin key; and a client that ends its retries."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, Depends, FastAPI

from services.common.app import create_app, require_admin
from services.common.background import Background
from services.common.errors import Busy, RemoteError, Unavailable
from services.common.http import ServiceClient
from services.common.serve import refuse_weak_key

KEY = "k" * 32


def build(failures: list[int]) -> FastAPI:
    """An app whose /flaky fails as often as ``failures`` says."""
    router = APIRouter()

    @router.get("/v1/busy")
    async def busy() -> None:
        raise Busy("no capacity: wait", retry_after_s=2.4)

    @router.get("/v1/models")
    async def openai_route() -> None:
        raise Busy("no capacity: wait", retry_after_s=2.4)

    @router.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("secret detail")

    @router.get("/v1/admin", dependencies=[Depends(require_admin)])
    async def admin() -> dict[str, str]:
        return {"is": "admin"}

    @router.post("/v1/flaky")
    async def flaky(body: dict[str, int]) -> dict[str, int]:
        if failures[0] > 0:
            failures[0] -= 1
            raise Unavailable("not yet")
        return body

    @router.get("/v1/slow")
    async def slow() -> None:
        await asyncio.sleep(5)

    async def readiness() -> dict[str, str]:
        return {"redis": "ok" if not failures[0] else "refused"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app("test", lifespan=lifespan, readiness=readiness, routers=[router])


@pytest.fixture
def failures() -> list[int]:
    return [0]


@pytest.fixture
def url(failures: list[int]) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(build(failures), host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_health_readiness_version_and_metrics(url: str, failures: list[int]) -> None:
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{url}/readyz").json() == {"ready": True, "checks": {"redis": "ok"}}
    failures[0] = 1
    unready = httpx.get(f"{url}/readyz")
    assert unready.status_code == 503
    assert unready.json()["checks"] == {"redis": "refused"}
    assert httpx.get(f"{url}/version").json()["service"] == "test"
    assert 'frontdesk_test_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in httpx.get(f"{url}/metrics").text


def test_a_given_request_id_is_kept_and_a_bad_one_replaced(url: str) -> None:
    assert httpx.get(f"{url}/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert httpx.get(f"{url}/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"].startswith("req-")


def test_errors_are_problem_json_or_openais_envelope(url: str) -> None:
    problem = httpx.get(f"{url}/v1/busy")
    assert (problem.status_code, problem.headers["retry-after"]) == (429, "2")
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.json()["code"] == "busy"
    envelope = httpx.get(f"{url}/v1/models").json()["error"]
    assert envelope == {"message": "no capacity: wait", "type": "invalid_request_error", "code": "busy", "param": None}


def test_what_the_framework_refuses_has_our_form_too(url: str) -> None:
    unknown = httpx.get(f"{url}/v1/nothing")
    assert (unknown.status_code, unknown.json()["code"], unknown.json()["title"]) == (404, "not_found", "Not Found")
    assert unknown.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{url}/v1/models/x").json()["error"]["code"] == "not_found"
    wrong = httpx.delete(f"{url}/v1/busy")
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "GET")
    garbled = httpx.post(f"{url}/v1/flaky", content=b"\xfd0", headers={"Content-Type": "application/json"})
    assert (garbled.status_code, garbled.json()["code"]) == (400, "bad_request")


def test_our_own_faults_are_500_without_their_detail(url: str) -> None:
    fault = httpx.get(f"{url}/v1/broken")
    assert fault.status_code == 500
    assert "secret detail" not in fault.text
    assert fault.json()["request_id"] in fault.json()["detail"]


def test_a_wrong_body_names_the_field(url: str) -> None:
    wrong = httpx.post(f"{url}/v1/flaky", json={"a": "x"})
    assert (wrong.status_code, wrong.json()["param"]) == (422, "body.a")


def test_the_admin_key_guards_admin_routes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.get(f"{url}/v1/admin").status_code == 200
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", KEY)
    assert httpx.get(f"{url}/v1/admin").status_code == 401
    assert httpx.get(f"{url}/v1/admin", headers={"Authorization": "Bearer other"}).status_code == 403
    assert httpx.get(f"{url}/v1/admin", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert httpx.get(f"{url}/v1/admin", headers={"x-api-key": KEY}).status_code == 200


@pytest.mark.parametrize("key", ["", "admin", "short"])
def test_an_open_address_needs_a_real_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", key)
    refuse_weak_key("127.0.0.1")
    with pytest.raises(SystemExit, match="refusing to bind"):
        refuse_weak_key("0.0.0.0")
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", KEY)
    refuse_weak_key("0.0.0.0")


async def test_the_client_retries_what_may_pass_within_its_budget(url: str, failures: list[int]) -> None:
    async with ServiceClient("test", url, retry_s=10) as client:
        failures[0] = 2
        assert await client.post("/v1/flaky", {"a": 1}) == {"a": 1}
        failures[0] = 1000
        with pytest.raises(RemoteError) as error:
            await client.post("/v1/flaky", {"a": 1}, retry_s=0.3)
    assert (error.value.status, error.value.code) == (503, "unavailable")


async def test_the_client_reports_other_failures_at_once(url: str) -> None:
    async with ServiceClient("test", url, retry_s=30) as client:
        with pytest.raises(RemoteError) as error:
            await client.post("/v1/flaky", {"a": "x"})
        assert (error.value.status, error.value.code) == (422, "validation_error")
        with pytest.raises(RemoteError, match="took over") as late:
            await client.get("/v1/slow", timeout_s=0.1, retry_s=0)
    assert late.value.status is None
    async with ServiceClient("test", "http://127.0.0.1:9") as nobody:
        with pytest.raises(RemoteError, match="unreachable"):
            await nobody.get("/healthz")


async def test_a_background_loop_that_fails_runs_again_and_stops_when_told() -> None:
    runs: list[str] = []
    settled = asyncio.Event()

    async def loop() -> None:
        runs.append("run")
        if len(runs) < 3:
            raise RuntimeError("passing")
        settled.set()
        await asyncio.Event().wait()

    async with Background() as background:
        background.start("loop", loop, restart_after_s=0.01)
        async with asyncio.timeout(5):
            await settled.wait()
        with pytest.raises(ValueError, match="runs already"):
            background.start("loop", loop)
    assert len(runs) == 3
