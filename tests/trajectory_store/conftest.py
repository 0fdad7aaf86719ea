"""Fixtures of the store's tests: a real Redis, a real store over HTTP, a client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from store_helpers import RedisServer, StoreClient, StoreProcess, StoreThread, make_config


@pytest.fixture(scope="session", autouse=True)
def _no_outer_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REDIS_URL", "FRONTDESK_ADMIN_KEY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for all tests that bring their own store, because starting one takes longer than most tests."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_of_shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The shared store sweeps whatever is in its Redis, by its own rules, so tests with other stores need another Redis."""
    with RedisServer(tmp_path_factory.mktemp("redis-of-store")) as server:
        yield server


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> RedisServer:
    """An empty redis-server with AOF (everysec); `kill` and `restart` are kill -9 and a start on the same port and data."""
    server: RedisServer = request.getfixturevalue("redis_of_shared_store" if "store" in request.fixturenames else "own_redis")
    server.flush()
    return server


@pytest.fixture(scope="session")
def shared_store(redis_of_shared_store: RedisServer) -> Iterator[StoreClient]:
    """One store for all tests with its usual settings: it holds nothing that emptying Redis would not empty."""
    with StoreThread(make_config(redis_of_shared_store.url)) as server:
        client = StoreClient(server.url)
        yield client
        client.close()


@pytest.fixture
def store(redis_server: RedisServer, shared_store: StoreClient) -> StoreClient:
    """An empty store with max_attempts=3 and a retry delay of 50 ms."""
    return shared_store


@pytest.fixture
def make_store(redis_server: RedisServer) -> Iterator[Callable[..., StoreClient]]:
    """Starts a store on the Redis with given settings and returns a client of it."""
    with ExitStack() as stack:

        def make(**settings: Any) -> StoreClient:
            server = stack.enter_context(StoreThread(make_config(redis_server.url, **settings)))
            client = StoreClient(server.url)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def store_process(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """The store as a process of its own, not started yet."""
    process = StoreProcess(tmp_path_factory.mktemp("store"), make_config(redis_server.url))
    yield process
    process.kill()
