"""What the launcher shows of a running experiment."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from standin import build

from services.common.config import ExperimentConfig
from services.common.http import ServiceClient
from services.launcher.display import LiveDisplay, PlainDisplay, display_for, plain_line
from services.launcher.lifecycle import State
from services.launcher.progress import Rate, Snapshot, Watcher, counter_total, rewards_by_step


@contextmanager
def serving(config: ExperimentConfig) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build("trajectory_store", config), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


async def test_watcher_reads_everything_once_and_keeps_it(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.launcher.progress.PAGE", 2)
    with serving(config) as url:
        async with ServiceClient("store", url) as store, ServiceClient("policy_server", "http://127.0.0.1:1") as away:
            watcher = Watcher(store, away)
            assert (await watcher.poll()).phase == "starting"
            for step in range(5):
                await store.post("/v1/metrics", {"step": step, "values": {"rollout/reward": step / 10}})
            await store.put("/v1/documents/experiment", {"phase": "rl", "step": 5, "total_steps": 9, "policy_version": 4})
            snapshot = await watcher.poll()
            await watcher.poll()
            assert len(watcher.records) == 5
    async with ServiceClient("store", url) as gone, ServiceClient("policy_server", url) as away:
        watcher._store, watcher._policy_server = gone, away
        assert await watcher.poll() == snapshot
    assert (snapshot.phase, snapshot.step, snapshot.total_steps, snapshot.policy_version) == ("rl", 5, 9, 4)
    assert (snapshot.reward, snapshot.trained, snapshot.dropped, snapshot.queued, snapshot.running) == (0.4, 20, 4, 1, 2)


@given(st.lists(st.tuples(st.floats(0.1, 20), st.integers(0, 50)), min_size=2, max_size=30))
def test_rate_of_a_growing_counter_lies_between_its_slowest_and_fastest_stretch(stretches: list[tuple[float, int]]) -> None:
    rate, now, value = Rate(), 0.0, 0.0
    rate.add(now, value)
    for seconds, growth in stretches:
        now, value = now + seconds, value + growth
        got = rate.add(now, value)
    per_s = [growth / seconds for seconds, growth in stretches]
    assert min(per_s) - 1e-6 <= got <= max(per_s) + 1e-6


def test_rate_starts_anew_after_a_restart() -> None:
    rate = Rate()
    assert [rate.add(0, 100), rate.add(10, 200), rate.add(11, 5), rate.add(12, 25)] == [0.0, 10.0, 0.0, 20.0]


def test_counter_is_summed_over_labels() -> None:
    text = '# TYPE a_total counter\na_total{x="1"} 2.0\na_total{x="2"} 3.5\na_total_other 9\nb 7\n'
    assert counter_total(text, "a_total") == 5.5
    assert counter_total(text, "c_total") == 0.0


def test_step_reported_twice_counts_as_last_reported() -> None:
    records = [{"step": 0, "values": {"rollout/reward": 0.1}}, {"step": 0, "values": {"rollout/reward": 0.2}}, {"step": 1, "values": {}}]
    assert rewards_by_step(records) == {0: 0.2}


def test_plain_lines_come_at_changes_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    display = display_for(Console(file=out))
    assert isinstance(display, PlainDisplay)
    with display:
        for snapshot in (Snapshot(phase="sft"), Snapshot(phase="sft"), Snapshot(phase="rl", step=1, reward=0.25)):
            display.show(snapshot, {}, 0)
    lines = out.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["phase sft", "phase rl"]
    assert "reward 0.250" in lines[1]
    monkeypatch.setattr("services.launcher.display.PLAIN_EVERY_S", 0.0)
    display.show(Snapshot(phase="rl", step=1), {}, 3)
    assert out.getvalue().splitlines()[-1].endswith("restarts 3")


def test_terminal_gets_a_table() -> None:
    out = io.StringIO()
    display = display_for(Console(file=out, force_terminal=True, width=100))
    assert isinstance(display, LiveDisplay)
    with display:
        display.show(Snapshot(phase="rl", step=3, total_steps=10), {"redis": State.HEALTHY, "trainer": State.RESTARTING}, 1)
    assert "3/10" in out.getvalue() and "trainer restarting" in out.getvalue()


def test_line_says_all_that_is_known() -> None:
    line = plain_line(Snapshot("rl", "", 2, 10, 2, 0.5, 40, 1.5, 300.4, 3, 4, 5, 6, 7), 1)
    assert line == (
        "phase rl | step 2/10 | reward 0.500 | policy version 2 | episodes 40 (1.50/s) | tokens/s 300 | "
        "queued/running/ready groups 3/4/5 | trained/dropped 6/7 | restarts 1"
    )
