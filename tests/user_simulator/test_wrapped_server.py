"""The model server that the user simulator wraps: started, watched, started again and stopped; real processes throughout."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_fakes import FAKE_SGLANG, GREETING, LiveApp, free_port, turn

from services.common.background import Background
from services.common.config import ExperimentConfig
from services.common.config.services import WrappedServerConfig
from services.common.transitions import IllegalTransition
from services.user_simulator.app import create_app
from services.user_simulator.server import WrappedServer
from services.user_simulator.server_states import TRANSITIONS, Event, Restarts, State, advance


async def until(met: Callable[[], bool], within_s: float = 20.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < give_up_at, "it did not happen"
        await asyncio.sleep(0.02)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def settings(port: int, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "command": [sys.executable, str(FAKE_SGLANG), str(port), str(folder / "starts")],
        "ready_url": f"http://127.0.0.1:{port}/health",
        "probe_every_s": 0.05,
        "stop_timeout_s": 2.0,
        "restart": {"max": 3, "backoff_s": 0.05},
        **changes,
    }


@asynccontextmanager
async def supervised(folder: Path, **changes: Any) -> AsyncIterator[WrappedServer]:
    config = WrappedServerConfig.model_validate(settings(free_port(), folder, **changes))

    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(timeout=1) as client:
                return (await client.get(config.ready_url)).status_code == 200
        except httpx.HTTPError:
            return False

    server = WrappedServer(config, folder / "logs" / "server.log", answers)
    async with Background() as background:
        background.start("server", server.run)
        yield server
    assert server.pid is None


async def test_a_server_is_started_watched_and_stopped_with_all_it_started(tmp_path: Path):
    async with supervised(tmp_path) as server:
        await until(lambda: server.state is State.READY)
        assert server.readiness() == "ok"
        pid = server.pid
        assert pid is not None
    assert not exists(pid)
    assert server.state is State.STOPPED
    assert (tmp_path / "logs" / "server.log").read_text().startswith("start 1")


async def test_a_server_that_is_killed_is_started_again(tmp_path: Path):
    async with supervised(tmp_path) as server:
        await until(lambda: server.state is State.READY)
        pid = server.pid
        assert pid is not None
        os.kill(pid, 9)
        await until(lambda: server.restarts.total == 1 and server.state is State.READY)
        assert server.pid != pid
    assert (tmp_path / "starts").read_text() == "2"


async def test_a_server_that_dies_at_its_start_is_given_up_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_DIES", "99")
    async with supervised(tmp_path, restart={"max": 1, "backoff_s": 0.01}) as server:
        await until(lambda: server.state is State.GIVEN_UP)
        assert "given_up: exited with status 3, see" in server.readiness()
    assert server.state is State.GIVEN_UP
    assert (tmp_path / "starts").read_text() == "2"


async def test_a_command_that_is_not_there_is_told_so(tmp_path: Path):
    async with supervised(tmp_path, command=["no-such-program"], restart={"max": 0}) as server:
        await until(lambda: server.state is State.GIVEN_UP)
    # The tether is there, so it starts, and says in the log what it could not become.
    assert "no-such-program" in (tmp_path / "logs" / "server.log").read_text()


async def test_a_server_that_is_never_ready_is_killed_at_its_deadline_and_one_deaf_to_sigterm_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_DEAF", "1")
    async with supervised(tmp_path, start_timeout_s=0.5, restart={"max": 0}) as server:
        await until(lambda: server.state is State.GIVEN_UP)
        assert "did not answer" in server.readiness()
    async with supervised(tmp_path, stop_timeout_s=0.2) as server:
        await until(lambda: server.pid is not None)
        pid = server.pid
        assert pid is not None
    assert not exists(pid)


async def test_a_server_that_hangs_is_started_again(tmp_path: Path):
    async with supervised(tmp_path, hang_s=0.5) as server:
        await until(lambda: server.state is State.READY)
        assert server.pid is not None
        os.kill(server.pid, 19)
        await until(lambda: server.restarts.total == 1 and server.state is State.READY)


async def until_ready(http: httpx.AsyncClient) -> httpx.Response:
    while (ready := await http.get("/readyz")).status_code != 200:
        assert "start" in ready.text
        await asyncio.sleep(0.05)
    return ready


async def test_a_turn_outlives_the_death_of_its_server(tmp_path: Path):
    """The whole service: the server dies in the middle of a turn, is started again, and the turn gets its answer."""
    port = free_port()
    config = {
        "cluster": {"fileroot": str(tmp_path)},
        "econfig": {"user_llm": "openai/qwen", "user_llm_base_url": f"http://127.0.0.1:{port}/v1"},
        "services": {"user_simulator": {"turn_timeout_s": 20, "call_timeout_s": 5, "server": settings(port, tmp_path)}},
    }
    live = await asyncio.to_thread(LiveApp, create_app(ExperimentConfig.model_validate(config)))
    try:
        async with httpx.AsyncClient(base_url=live.url, timeout=30) as http:
            ready = await until_ready(http)
            assert ready.json()["checks"] == {"server": "ok", "backend": "ok"}
            await http.post(f"http://127.0.0.1:{port}/control", json={"mode": "die"})
            reply = (await http.post("/v1/turns", json=turn(GREETING).model_dump(mode="json"))).json()
            assert (reply["fault"], reply["content"]) == ("ok", "My phone is broken, seed 4.")
            # The turn asks the new process itself, perhaps before the supervisor's own look at it.
            await until_ready(http)
            metrics = (await http.get("/metrics")).text
            assert "frontdesk_user_simulator_server_restarts_total 1.0" in metrics
            assert "frontdesk_user_simulator_server_ready 1.0" in metrics
            assert (await http.get("/v1/faults")).json()["retries"] >= 1
    finally:
        await asyncio.to_thread(live.stop)
    assert not listens(port)
    assert (tmp_path / "frontdesk" / "trial0" / "logs" / "user_model_server.log").exists()


async def test_no_orphan_is_left_when_the_user_simulator_is_killed(tmp_path: Path):
    port = free_port()
    config = tmp_path / "config.yaml"
    server = settings(port, tmp_path)
    section = {"host": "127.0.0.1", "port": free_port(), "server": server}
    tree = {
        "cluster": {"fileroot": str(tmp_path)},
        "econfig": {"user_llm": "qwen", "user_llm_base_url": f"http://127.0.0.1:{port}/v1"},
        "services": {"user_simulator": section},
    }
    config.write_text(ExperimentConfig.model_validate(tree).model_dump_json())
    command = [sys.executable, "-m", "services.user_simulator", "--config", str(config)]
    with subprocess.Popen(command) as simulator:  # noqa: ASYNC220
        try:
            await until(lambda: listens(port))
        finally:
            simulator.kill()
    await until(lambda: not listens(port))


def listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_only_the_tables_transitions_happen(events: list[Event]):
    state = State.STOPPED
    for event in events:
        if (state, event) not in TRANSITIONS:
            with pytest.raises(IllegalTransition):
                advance(state, event)
            continue
        state = advance(state, event)
        assert (state is State.READY) == (event is Event.ANSWERED)
    assert all((state, Event.STOP) in TRANSITIONS for state in State)


@given(st.integers(0, 6), st.lists(st.floats(0, 100), max_size=20))
def test_restarts_are_bounded_and_back_off_doubles_up_to_its_maximum(limit: int, lives: list[float]):
    restarts = Restarts(limit, backoff_s=1.0, backoff_max_s=8.0, reset_after_s=50.0)
    in_a_row = 0
    for lived in lives:
        in_a_row = 1 if lived >= 50 else in_a_row + 1
        delay = restarts.after_death(lived)
        if in_a_row > limit:
            assert delay is None
            return
        assert delay == min(2.0 ** (in_a_row - 1), 8.0)
