"""Fixtures of the agent runner's tests: the real telecom domain, fake store and proxy over HTTP, the real user simulator."""

from collections.abc import Callable, Iterator

import pytest
from runner_fakes import FakeProxy, FakeStore, LiveApp, says
from runner_stack import Stack, running_stack

from services.agent_runner.domains import DomainBackend, TaskSpec, open_backend
from services.common.config import ExperimentConfig
from services.user_simulator.app import create_app as create_user_simulator


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAJECTORY_STORE", "POLICY_PROXY", "USER_SIMULATOR"):
        monkeypatch.delenv(f"FRONTDESK_{name}_URL", raising=False)
    monkeypatch.delenv("FRONTDESK_ADMIN_KEY", raising=False)


@pytest.fixture(scope="session")
def telecom() -> DomainBackend:
    return open_backend("telecom", "inspect_evals")


@pytest.fixture(scope="session")
def mock() -> DomainBackend:
    return open_backend("mock", "inspect_evals")


@pytest.fixture(scope="session")
def small(telecom: DomainBackend) -> list[TaskSpec]:
    return list(telecom.tasks("small"))


@pytest.fixture(scope="session")
def task_of(telecom: DomainBackend) -> Callable[[str], TaskSpec]:
    """The first task of `full` whose id contains a text."""

    def find(part: str) -> TaskSpec:
        return next(task for task in telecom.tasks("full") if part in task.task_id)

    return find


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy(lambda _sid, _body: says(content="nothing to say"))


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def live() -> Iterator[Callable[[FakeProxy | FakeStore], LiveApp]]:
    """Serves apps for the length of a test."""
    started: list[LiveApp] = []

    def start(fake: FakeProxy | FakeStore) -> LiveApp:
        started.append(LiveApp(fake.app).start())
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def user_simulator() -> Iterator[str]:
    """The address of a real user simulator with the scripted back end."""
    one = LiveApp(create_user_simulator(ExperimentConfig())).start()
    yield one.url
    one.stop()


@pytest.fixture
def stack(
    live: Callable[[FakeProxy | FakeStore], LiveApp], store: FakeStore, proxy: FakeProxy, user_simulator: str, small: list[TaskSpec]
) -> Iterator[Stack]:
    """The runner's whole app on a port, between fakes."""
    with running_stack(store, live(store).url, proxy, live(proxy).url, user_simulator) as one:
        yield one
