"""Thousands of episodes on one event loop: its lag is measured, and starts and steps are spread over it."""

import asyncio
import time
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from runner_fakes import FakeStore, LiveApp, rollout, until

from services.agent_runner.domains import TaskSpec
from services.agent_runner.episodes.live import LiveEpisodes
from services.agent_runner.episodes.pacing import LoopLag, Pace, PacedClient, Turnstile
from services.agent_runner.episodes.worker import LEASED_AT_ONCE, Worker
from services.agent_runner.metrics import RunnerMetrics
from services.agent_runner.store import StoreClient
from services.common.app import Metrics
from services.common.background import Background
from services.common.http import ServiceClient
from services.common.wire.rollouts import RolloutRequest, Status, TaskRef, TaskStamp, Timings, Trajectory


def burn(seconds: float) -> None:
    """Uses the CPU for so long, whatever else the machine does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def longest_gap(work: "asyncio.Future[object]") -> float:
    """The most CPU seconds between two looks at the loop, while ``work`` goes on."""
    longest = 0.0
    while not work.done():
        before = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - before)
    return longest


async def test_steps_that_are_due_at_once_do_not_hold_up_the_loop():
    async def all_steps(pace: Pace) -> None:
        async def one() -> None:
            await pace.step()
            burn(0.002)

        await asyncio.gather(*(one() for _ in range(200)))

    crowded = await longest_gap(asyncio.ensure_future(all_steps(Pace(at_once=1000))))
    paced = await longest_gap(asyncio.ensure_future(all_steps(Pace(at_once=8))))
    assert crowded > 0.3
    assert paced < 0.1


@settings(deadline=None, max_examples=30)
@given(at_once=st.integers(1, 5), total=st.integers(0, 30), cancelled=st.sets(st.integers(0, 29)))
async def test_steps_begin_in_order_and_so_many_a_round(at_once: int, total: int, cancelled: set[int]):
    pace, begun = Pace(at_once), list[int]()
    rounds: list[int] = []

    async def one(number: int) -> None:
        await pace.step()
        begun.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(total)]
    await asyncio.sleep(0)
    for number in cancelled & set(range(total)):
        tasks[number].cancel()
    while not all(task.done() for task in tasks):
        rounds.append(len(begun))
        await asyncio.sleep(0)
    kept = [number for number in range(total) if not tasks[number].cancelled()]
    assert begun == kept
    assert set(range(total)) - set(kept) <= cancelled
    assert all(later - earlier <= at_once for earlier, later in pairwise(rounds))


async def test_nobody_waits_on_an_idle_loop():
    pace = Pace(at_once=1)
    for _ in range(100):
        async with asyncio.timeout(0.5):
            await pace.step()
        await asyncio.sleep(0)


async def test_episodes_begin_one_after_the_other_and_slower_on_a_late_loop():
    turnstile, begun = Turnstile(), list[int]()

    async def one(number: int) -> None:
        await turnstile.admit()
        begun.append(number)
        burn(0.002)

    tasks = [asyncio.create_task(one(number)) for number in range(100)]
    gone = tasks.pop(3)
    await asyncio.sleep(0)
    gone.cancel()
    work = asyncio.gather(*tasks)
    assert await longest_gap(work) < 0.05
    assert begun == [number for number in range(100) if number != 3]


async def test_a_late_loop_shows_in_the_lag():
    lag = LoopLag()
    assert lag.quantile(1.0) == 0.0
    async with Background() as background:
        background.start("lag", lag.run)
        await until(lambda: lag.quantile(1.0) > 0)
        time.sleep(0.25)  # noqa: ASYNC251 - this is what it measures
        await until(lambda: lag.quantile(1.0) > 0.2)
        assert lag.quantile(0.5) <= lag.quantile(1.0)


async def test_calls_go_through_the_pace_and_health_checks_do_not(live: object, store: FakeStore):
    assert callable(live)
    app: LiveApp = live(store)
    pace = Pace(at_once=1)
    async with PacedClient("store", app.url, pace) as client:
        assert (await client.get("/healthz"))["status"] == "ok"
        assert pace._left == 1
        await client.post("/v1/rollouts/heartbeat", {"lease_ids": []})
        assert store.heartbeats == 1


async def test_a_large_backlog_is_leased_in_portions_and_begun_one_by_one(live: object, store: FakeStore, small: list[TaskSpec]):
    assert callable(live)
    store.queue = [rollout(small[0], episode_id=f"e{number}") for number in range(600)]
    running: list[int] = []

    async def no_floor(_ref: TaskRef) -> float:
        return 0.0

    async def stamp(_ref: TaskRef) -> TaskStamp:
        return TaskStamp(source="", digest="")

    async def seal(_session: str) -> None:
        return None

    async def play(request: RolloutRequest, **_: object) -> Trajectory:
        burn(0.002)
        running.append(len(worker.running))
        await asyncio.sleep(0.2)
        facts = request.model_dump(exclude={"max_steps", "policy_version"})
        stamped = TaskStamp(source="s", digest="d")
        timings = Timings(started_at=0, total_s=0.2)
        return Trajectory(**facts, stamp=stamped, status=Status.SCORED, reward=0.5, termination_reason="user_stop", timings=timings)

    metrics = Metrics("agent_runner")
    episodes = LiveEpisodes(seal, stamp, RunnerMetrics(metrics, no_floor))
    app: LiveApp = live(store)
    async with ServiceClient("trajectory_store", app.url, timeout_s=10) as client, Background() as background:
        leases = StoreClient(client)
        worker = Worker("w1", leases, lambda request: episodes.run(request, play), concurrency=600, ttl_s=5, wait_s=0.2)
        background.start("worker", worker.run)
        gap = await longest_gap(asyncio.ensure_future(until(lambda: len(store.trajectories) == 600, 60)))
    assert max(store.limits) == LEASED_AT_ONCE
    assert gap < 0.2
    assert len(running) == 600
