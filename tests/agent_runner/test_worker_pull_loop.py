"""The worker against a store and a proxy over HTTP: leasing, renewing, losing and giving back leases, and both services going away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runner_fakes import FakeProxy, FakeStore, LiveApp, config_for, openai_error, rollout, says, tool_call, until

from services.agent_runner.conversation.demonstrator import Demonstrator
from services.agent_runner.domains import TaskSpec
from services.agent_runner.episodes.player import EpisodePlayer
from services.agent_runner.episodes.worker import Worker
from services.agent_runner.proxy import ProxyClient
from services.agent_runner.store import StoreClient
from services.common.background import Background
from services.common.http import ServiceClient

Live = Callable[[object], LiveApp]


@asynccontextmanager
async def working(store_url: str, proxy_url: str, *, concurrency: int = 4) -> AsyncIterator[Worker]:
    config = config_for(proxy=proxy_url)
    async with (
        ServiceClient("trajectory_store", store_url, timeout_s=2) as store,
        ServiceClient("policy_proxy", proxy_url, retry_s=10) as proxy,
        ServiceClient("user_simulator", "http://127.0.0.1:1") as users,
        Background() as background,
    ):
        player = EpisodePlayer(config, ProxyClient(proxy, call_timeout_s=10), users)
        worker = Worker("w1", StoreClient(store), player.play, concurrency=concurrency, ttl_s=0.3, wait_s=0.2, pause_s=0.05)
        background.start("worker", worker.run)
        yield worker


def complete(tasks: list[TaskSpec]) -> Callable[[str, object], object]:
    playing: dict[str, Demonstrator] = {}

    def policy(sid: str, _body: object) -> object:
        index = int(sid.removeprefix("e").partition(".")[0])
        return playing.setdefault(sid, Demonstrator(tasks[index], "complete", 0)).next_message(None)

    return policy


async def test_leased_episodes_are_played_and_reported_with_their_lease(
    live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]
):
    proxy.policy = complete(small)
    store.queue = [rollout(task, episode_id=f"e{index}") for index, task in enumerate(small)]
    async with working(live(store).url, live(proxy).url) as worker:
        await until(lambda: len(store.trajectories) == 20 and worker.running == [], 60)
    assert {record["reward"] for record in store.trajectories.values()} == {1.0}
    assert store.lease_headers["e7"] == "lease-e7-1"
    assert store.released == []


async def test_no_more_than_its_capacity_runs_at_once(live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = complete(small)
    proxy.delay_s = 0.02
    store.queue = [rollout(task, episode_id=f"e{index}") for index, task in enumerate(small[:8])]
    most = 0
    async with working(live(store).url, live(proxy).url, concurrency=3) as worker:
        while len(store.trajectories) < 8:
            most = max(most, len(worker.running))
            await asyncio.sleep(0.005)
    assert most == 3


async def test_a_lost_lease_stops_its_episode_and_no_other(live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = lambda _sid, _body: says(tool_call("check_vpn_status"))
    proxy.delay_s = 0.05
    store.queue = [rollout(small[0], episode_id=f"e{index}", max_steps=10_000) for index in range(2)]
    async with working(live(store).url, live(proxy).url) as worker:
        await until(lambda: len(worker.running) == 2 and store.heartbeats > 0)
        store.lost = {"lease-e0-1"}
        await until(lambda: worker.running == ["e1"])
        assert "e0" not in store.trajectories
    assert [body["lease_id"] for body in store.released] == ["lease-e1-1"]


async def test_a_shutdown_gives_leases_back_without_counting_the_attempt(
    live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]
):
    proxy.delay_s = 30
    store.queue = [rollout(task, episode_id=f"e{index}") for index, task in enumerate(small[:3])]
    async with working(live(store).url, live(proxy).url) as worker:
        await until(lambda: len(worker.running) == 3)
    assert sorted(body["lease_id"] for body in store.released) == ["lease-e0-1", "lease-e1-1", "lease-e2-1"]
    assert {body["count_attempt"] for body in store.released} == {False}
    assert store.trajectories == {}


async def test_a_failing_proxy_is_reported_as_a_failure_and_never_as_a_zero(
    live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]
):
    proxy.policy = lambda _sid, _body: openai_error(500, "internal_error")
    store.queue = [rollout(small[0], episode_id="e0")]
    async with working(live(store).url, live(proxy).url):
        await until(lambda: "e0" in store.trajectories)
    record = store.trajectories["e0"]
    assert (record["status"], record["reward"], record["failure"]["who"]) == ("failed", None, "infra")


async def test_store_and_proxy_may_both_go_away_and_come_back(live: Live, store: FakeStore, proxy: FakeProxy, small: list[TaskSpec]):
    proxy.policy = complete(small)
    proxy.delay_s = 0.05
    store.queue = [rollout(task, episode_id=f"e{index}") for index, task in enumerate(small[:4])]
    store_app, proxy_app = live(store), live(proxy)
    async with working(store_app.url, proxy_app.url) as worker:
        await until(lambda: len(proxy.call_ids) > 4)
        await asyncio.to_thread(proxy_app.stop)
        await asyncio.to_thread(store_app.stop)
        await asyncio.sleep(0.3)
        assert len(worker.running) + len(store.trajectories) == 4
        await asyncio.to_thread(proxy_app.start)
        await until(lambda: len(proxy.sealed) == 4)
        assert len(store.trajectories) < 4
        await asyncio.to_thread(store_app.start)
        await until(lambda: len(store.trajectories) == 4)
        store.queue = [rollout(small[5], episode_id="e5")]
        await until(lambda: len(store.trajectories) == 5)
    assert {record["reward"] for record in store.trajectories.values()} == {1.0}
