"""Which server a call goes to, how many a server gets, who waits and who is refused, servers that come and go."""

import asyncio

import numpy as np
import pytest
from fake_sglang import FakeSglang
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_servers import ServerThread
from server_rig import EOS, Rig, greedy, server_rig, until

from services.common.errors import Busy, Conflict, NotFound
from services.policy_proxy.servers.load import ConcurrencyLimit, LoadFigures, read_loads
from services.policy_proxy.servers.routing import BLOCK_TOKENS, PrefixTable, block_keys, pick, rendezvous
from services.policy_proxy.servers.waiting_room import WaitingRoom


class Server:
    def __init__(self, url: str, load: int = 0) -> None:
        self.url, self.load = url, load


def ids(*parts: tuple[int, int]) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Prompt of (token, count) runs."""
    return np.concatenate([np.full(count, token, "<i4") for token, count in parts])


def test_blocks_of_a_prompt() -> None:
    system = (1, 3 * BLOCK_TOKENS)
    first, second = block_keys(ids(system, (2, BLOCK_TOKENS))), block_keys(ids(system, (3, BLOCK_TOKENS), (4, 7)))
    assert len(first) == len(second) == 4 and first[:3] == second[:3] and first[3] != second[3]
    assert len(block_keys(ids((1, 5)))) == 1 and block_keys(ids((1, 5))) != block_keys(ids((1, 6)))


def test_a_new_session_goes_where_most_of_its_prompt_is() -> None:
    known, servers = PrefixTable(), [Server("a"), Server("b"), Server("c")]
    task = block_keys(ids((1, 2 * BLOCK_TOKENS), (2, BLOCK_TOKENS)))
    known.remember(task[:2], "b")
    known.remember(task, "c")
    assert pick(task, servers, known).url == "c"
    servers[2].load = 5
    assert pick(task, servers, known).url == "b"
    known.clear()
    servers[2].load = 0
    best = max(servers, key=lambda server: rendezvous(task[-1], server.url))
    assert pick(task, servers, known) is best


def test_the_table_of_prefixes_forgets() -> None:
    known = PrefixTable(capacity=4)
    for n in range(6):
        known.remember([bytes([n])], "a")
    assert [known.known_blocks([bytes([n])], "a") for n in range(6)] == [0, 0, 1, 1, 1, 1]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 5))
def test_no_server_gets_much_more_than_its_share(prompts: list[int], n_servers: int) -> None:
    known, servers = PrefixTable(), [Server(str(n)) for n in range(n_servers)]
    for count, token in enumerate(prompts, 1):
        keys = block_keys(ids((token, 9)))
        server = pick(keys, servers, known)
        known.remember(keys, server.url)
        server.load += 1
        assert server.load <= -(-1.25 * count // n_servers)


def test_the_limit_follows_the_figures() -> None:
    limit = ConcurrencyLimit(ceiling=100)
    assert limit.value == 64
    limit.report(LoadFigures(running=10, queued=0, token_usage=0.1), in_flight=10)
    assert limit.value == 64
    limit.report(LoadFigures(running=64, queued=0, token_usage=0.5), in_flight=64)
    assert limit.value == 80
    limit.report(LoadFigures(running=60, queued=40, token_usage=0.5), in_flight=80)
    assert limit.value == 60 and limit.others == 20
    limit.report(LoadFigures(running=60, queued=0, token_usage=0.99), in_flight=60)
    assert limit.value == 45
    limit.refused()
    assert limit.value == 22
    for _ in range(20):
        limit.unreported(in_flight=100)
    assert limit.value == 100
    for _ in range(40):
        limit.report(LoadFigures(running=0, queued=50, token_usage=0.0), in_flight=0)
    assert limit.value == 1


def test_load_figures_of_several_ranks() -> None:
    ranks = [{"num_running_reqs": 2, "num_waiting_reqs": 1, "token_usage": 0.5}, {"num_running_reqs": 3, "num_waiting_reqs": 0}]
    assert read_loads({"loads": ranks}) == LoadFigures(5, 1, 0.5)
    for bad in ({}, {"loads": []}, {"loads": [{"num_running_reqs": 1}]}):
        with pytest.raises(ValueError, match="loads"):
            read_loads(bad)


async def test_the_waiting_room_is_first_come_first_served_and_bounded() -> None:
    room, free, order = WaitingRoom(limit=3), [0], list[int]()

    def choose() -> int | None:
        free[0] -= 1
        if free[0] >= 0:
            return 1
        free[0] += 1
        return None

    async def wait(n: int, under_way: bool = False) -> None:
        await room.take(choose, under_way=under_way)
        order.append(n)

    waiting = [asyncio.create_task(wait(n)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await room.take(choose)
    with pytest.raises(Busy):
        room.check()
    waiting.append(asyncio.create_task(wait(9, under_way=True)))
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    free[0] = 2
    room.wake()
    await until(lambda: len(order) == 2)
    assert order == [9, 1]
    free[0] = 1
    room.wake()
    await waiting[2]
    assert order == [9, 1, 2] and len(room) == 0


async def test_who_is_woken_and_leaves_wakes_the_next() -> None:
    room, places = WaitingRoom(limit=9), list[int]()
    first, second = (asyncio.create_task(room.take(lambda: places.pop() if places else None)) for _ in range(2))
    await asyncio.sleep(0)
    places.append(1)
    room.wake()
    first.cancel()
    assert await second == 1


def slowly(rig: Rig) -> None:
    for engine in rig.engines:
        engine.stall_generate = True


async def test_calls_over_the_limit_wait_and_then_are_refused() -> None:
    async with server_rig(ceiling=2, max_waiting=1) as rig:
        slowly(rig)
        calls = [rig.start(f"c{n}", stream=False) for n in range(3)]
        await until(lambda: len(rig.pool.room) == 1, "one to wait")
        with pytest.raises(Busy) as refused:
            await rig.start("c4", stream=False)
        assert refused.value.headers()["Retry-After"]
        assert len(rig.exchanges) == 2
        rig.engines[0].stall_generate = False
        assert [done.finish for done in await asyncio.gather(*calls)] == ["stop"] * 3


async def test_a_full_server_is_asked_less_and_the_call_goes_on() -> None:
    async with server_rig() as rig:
        rig.engines[0].answer_status = 503
        call = rig.start(stream=False)
        await until(lambda: rig.pool.servers[0].limit.value <= 16, "a lower limit")
        assert rig.pool.servers[0].state.value == "up"
        rig.engines[0].answer_status = 200
        assert (await call).finish == "stop"


async def test_a_busy_server_is_passed_over() -> None:
    async with server_rig(servers=2) as rig:
        rig.engines[0].queued = 100
        await until(lambda: rig.pool.servers[0].load >= 100, "the load figures")
        for n in range(6):
            await rig.start(f"c{n}", stream=False, n=n)
        assert [len(engine.exchanges) for engine in rig.engines] == [0, 6]


async def test_the_same_prompt_goes_to_the_same_server() -> None:
    async with server_rig(servers=3) as rig:
        for n in (1, 2, 3):
            for k in range(3):
                await rig.start(f"c{n}.{k}", stream=False, n=n)
        for engine in rig.engines:
            assert len(engine.exchanges) % 3 == 0


async def test_servers_come_and_go() -> None:
    async with server_rig() as rig:
        (first,) = rig.pool.servers
        newcomer = FakeSglang(script=lambda _: [EOS], version="default")
        with ServerThread(newcomer.app) as thread:
            rig.fleet.add(thread.url)
            rig.fleet.add(thread.url + "/")
            await rig.all_up()
            assert len(rig.pool.servers) == 2 and newcomer.version == "0"
            assert (await rig.fleet.drain(first.url, 1.0)).in_flight == 0
            await rig.start(stream=False)
            assert len(newcomer.exchanges) == 1
            assert await rig.update(1) == [True, True]
            assert rig.engines[0].version == "1"
            rig.fleet.add(first.url)
            await rig.fleet.remove(thread.url, force=False)
            await rig.start("c2", stream=False)
            assert len(newcomer.exchanges) == 1
        with pytest.raises(NotFound):
            await rig.fleet.drain(thread.url, 0)


async def test_a_server_with_calls_goes_only_by_force_and_they_go_on_elsewhere() -> None:
    async with server_rig(servers=2) as rig:
        for engine in rig.engines:
            engine.token_delay_s = 0.02
        call = rig.start()
        await until(lambda: len(rig.heard) > 2)
        busy = next(server for server in rig.pool.servers if server.in_flight)
        assert (await rig.fleet.drain(busy.url, 0.0)).in_flight == 1
        with pytest.raises(Conflict):
            await rig.fleet.remove(busy.url, force=False)
        await rig.fleet.remove(busy.url, force=True)
        done = await call
        rig.assert_true(done)
        assert done.server != busy.url


async def test_behind_a_router_generation_goes_to_it_and_control_to_each_server() -> None:
    router = FakeSglang(script=lambda _: [20, 21, EOS])
    with ServerThread(router.app) as thread:
        async with server_rig(servers=2, router_url=thread.url) as rig:
            done = await rig.start(stream=False, preferred="")
            await rig.start("c2", preferred=done.server)
            assert rig.exchanges == [] and len(router.exchanges) == 2
            keys = {item.headers["x-smg-routing-key"] for item in router.exchanges}
            assert keys == {"c1"} and rig.heard == [20, 21, EOS]
            await rig.update(1)
            assert router.control == [] and [engine.version for engine in rig.engines] == ["1", "1"]
            router.version = "1"
            router.answer_status = 500
            call = rig.start("c3", stream=False)
            await until(lambda: call.done() or router.answer_status == 200 or len(rig.pool.up()) == 2)
            router.answer_status = 200
            assert (await call).versions == [(1, 3)]
            router.stall_generate = True
            call = rig.start("c4", stream=False)
            await until(lambda: "c4.0" in router.running)
            call.cancel()
            await until(lambda: all(engine.aborted == ["c4.0"] for engine in rig.engines), "each server told")


async def test_two_thousand_calls_at_once_lose_nothing() -> None:
    n_calls = 2000
    async with server_rig(servers=2, says=3, ceiling=512, timeout_s=60.0) as rig:
        calls = [rig.start(f"c{n}", stream=False, n=n, sampling=greedy(8)) for n in range(n_calls)]
        await asyncio.sleep(0)
        assert await rig.update(1, deadline_s=30.0) == [True, True]
        answers = await asyncio.gather(*calls)
        made = {item.rid: item for item in rig.exchanges}
        for n, done in enumerate(answers):
            last = made[f"c{n}.{done.submissions - 1}"]
            assert (done.finish, last.finish) == ("stop", "stop")
            assert done.ids[-len(last.output_ids) :] == last.output_ids
            assert sum(count for _, count in done.versions) == len(done.ids) == 3
        assert {version for done in answers for version, _ in done.versions} <= {0, 1}
        assert rig.pool.servers[0].in_flight == rig.pool.servers[1].in_flight == len(rig.pool.room) == 0
