"""What becomes of running calls in each mode of a weight update, and weights that come from the trainer's memory."""

import asyncio

import pytest
from server_rig import Rig, server_rig, until

from services.common.errors import Conflict, Unavailable
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.pool import ServerState
from services.policy_proxy.servers.sglang import Bucket
from services.policy_proxy.servers.versions import Weights, holds, memory_label, version_of
from services.policy_proxy.weights.group import GroupSpec, GroupState
from services.policy_proxy.weights.steps import Broadcast, PauseMode
from services.policy_proxy.weights.updates import Phase

BUCKETS = [Bucket(["a", "b"], ["bfloat16", "bfloat16"], [[2, 3], [4]]), Bucket(["c"], ["float32"], [[5]])]


async def running_call(rig: Rig, stream: bool) -> asyncio.Task[object]:
    for engine in rig.engines:
        engine.token_delay_s = 0.02
    call = rig.start(stream=stream)
    await until(lambda: any(len(item.output_ids) >= 3 for item in rig.exchanges), "some tokens")
    return call


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("mode", "requests", "versions"), [("abort", 2, 2), ("retract", 1, 2), ("in_place", 1, 2), ("wait", 1, 1)])
async def test_a_call_lives_through_an_update(mode: PauseMode, requests: int, versions: int, stream: bool) -> None:
    async with server_rig(mode=mode) as rig:
        (engine,) = rig.engines
        call = await running_call(rig, stream)
        assert await rig.update(1, mode) == [True]
        done = await call
        rig.assert_true(done, streamed=stream)
        assert len(rig.exchanges) == requests and len(done.versions) == versions
        (update,) = engine.updates
        assert update["abort_all_requests"] is (mode in ("abort", "wait"))
        assert update["flush_cache"] is (mode != "in_place")
        assert engine.pause_mode == {"wait": "abort"}.get(mode, mode)
        assert not engine.paused and rig.updates.phase is Phase.IDLE


async def test_calls_that_do_not_finish_in_time_are_ended() -> None:
    async with server_rig() as rig:
        call = await running_call(rig, stream=True)
        rig.engines[0].stall_after = 4
        assert await rig.update(1, "wait", deadline_s=2.0) == [True]
        rig.engines[0].stall_after = -1
        done = await call
        rig.assert_true(done)
        assert [version for version, _ in done.versions] == [0, 1]


async def test_kept_caches_are_told_apart_by_version() -> None:
    async with server_rig() as rig:
        await rig.start("before")
        await rig.update(1, "in_place")
        await rig.start("after")
        assert ["extra_key" in item.body for item in rig.exchanges] == [False, True]
        assert rig.exchanges[1].body["extra_key"] == "v1"


async def test_running_calls_are_not_left_to_weights_that_nobody_verified() -> None:
    async with server_rig(servers=2) as rig:
        good, bad = rig.engines
        bad.lie_about_update = True
        rig.pool.servers[0].cordoned = True
        call = await running_call(rig, stream=True)
        rig.pool.servers[0].cordoned = False
        assert await rig.update(1, "in_place") == [True, False]
        done = await call
        rig.assert_true(done)
        assert [item.finish for item in bad.exchanges] == ["abort"]
        assert done.versions[-1][0] == 1 and good.exchanges
        bad.lie_about_update = False
        await rig.all_up()
        assert not bad.paused and bad.version == "1"


async def test_a_server_without_spans_cannot_keep_running_calls() -> None:
    """Its label says nothing about the tokens before the update; such a call is made again rather than guessed at."""
    async with server_rig() as rig:
        rig.engines[0].with_spans = False
        call = await running_call(rig, stream=False)
        await rig.update(1, "retract")
        done = await call
        assert done.versions == [(1, len(done.ids))] and len(rig.exchanges) == 2


async def joined(rig: Rig, **more: int) -> None:
    plan = await rig.group.plan()
    await rig.group.form(GroupSpec("10.0.0.1", 29500, more.get("world_size", plan["world_size"])), 5.0)


async def test_servers_join_the_trainers_group_with_their_ranks() -> None:
    async with server_rig(servers=3) as rig:
        rig.engines[1].tp_size = 4
        plan = await rig.group.plan()
        assert plan["world_size"] == 7
        assert [member["rank_offset"] for member in plan["members"]] == [1, 2, 6]
        with pytest.raises(Conflict, match="make it 7"):
            await joined(rig, world_size=4)
        await joined(rig)
        assert rig.group.state is GroupState.READY
        (body,) = rig.engines[1].groups
        assert body == {
            "master_address": "10.0.0.1",
            "master_port": 29500,
            "world_size": 7,
            "rank_offset": 2,
            "group_name": "weight_update_group",
            "backend": "nccl",
        }


@pytest.mark.parametrize("mode", ["abort", "in_place"])
async def test_weights_come_from_the_trainers_memory(mode: PauseMode) -> None:
    async with server_rig(servers=2, mode=mode) as rig:
        await joined(rig)
        call = await running_call(rig, stream=True)
        assert await rig.update(1, mode, broadcast=Broadcast("weight_update_group", BUCKETS)) == [True, True]
        done = await call
        rig.assert_true(done)
        assert [version for version, _ in done.versions] == [0, 1]
        for engine in rig.engines:
            assert [item["names"] for item in engine.received] == [["a", "b"], ["c"]]
            assert [item["flush_cache"] for item in engine.received] == [False, mode == "abort"]
            assert (engine.version, engine.paused, engine.session_open) == (memory_label(wanted(1)), False, False)
            assert engine.updates == []
        rig.assert_true(await rig.start("c2", stream=False), "c2", streamed=False)


def wanted(version: int) -> PolicyVersion:
    return PolicyVersion(version=version, path=f"/weights/v{version}")


async def test_a_server_that_fails_a_broadcast_gets_the_weights_from_disk() -> None:
    async with server_rig(servers=2) as rig:
        await joined(rig)
        bad = rig.engines[1]
        bad.fail_update = "NCCL error"
        assert await rig.update(1, broadcast=Broadcast("weight_update_group", BUCKETS)) == [True, False]
        assert rig.group.state is GroupState.ABSENT
        with pytest.raises(Conflict, match="weight_group"):
            await rig.update(2, broadcast=Broadcast("weight_update_group", BUCKETS))
        bad.fail_update = ""
        await rig.all_up()
        assert (bad.version, bad.model_path, bad.session_open) == ("1", "/weights/v1", False)


async def test_a_server_that_joined_the_pool_later_gets_them_from_disk_too() -> None:
    async with server_rig(servers=2) as rig:
        await rig.fleet.remove(rig.threads[1].url, force=False)
        await joined(rig)
        rig.fleet.add(rig.threads[1].url)
        await rig.all_up()
        assert await rig.update(1, broadcast=Broadcast("weight_update_group", BUCKETS)) == [True, False]
        await rig.all_up()
        assert rig.engines[1].version == "1" and rig.engines[1].received == []


async def test_a_group_whose_member_was_lost_is_broken() -> None:
    async with server_rig() as rig:
        await joined(rig)
        rig.pool.suspect(rig.pool.servers[0], "gone")
        assert rig.group.state is GroupState.BROKEN
        await rig.all_up()
        with pytest.raises(Conflict, match="broken"):
            await rig.update(1, broadcast=Broadcast("weight_update_group", BUCKETS))
        await joined(rig)
        assert rig.group.state is GroupState.READY


async def test_a_trainer_that_never_joins_or_never_broadcasts_holds_nobody_up() -> None:
    async with server_rig() as rig:
        (engine,) = rig.engines
        engine.stall_control = "/init_weights_update_group"
        with pytest.raises(Unavailable, match="not complete"):
            await rig.group.form(GroupSpec("10.0.0.1", 29500, 2), 0.2)
        engine.stall_control = ""
        await joined(rig)
        engine.stall_control = "/update_weights_from_distributed"
        with pytest.raises(Unavailable):
            await rig.update(1, deadline_s=1.0, broadcast=Broadcast("weight_update_group", BUCKETS))
        assert not rig.gate.closed and not engine.paused
        await rig.all_up()
        assert (engine.version, engine.model_path) == ("0", "/weights/v0")
        engine.stall_control = ""
        rig.assert_true(await rig.start())


async def test_another_proxys_update_is_taken_over_without_a_second_one() -> None:
    async with server_rig() as rig:
        (engine,) = rig.engines
        engine.version, engine.model_path = "1", "/weights/v1"
        await rig.updates.follow(wanted(1), 5.0)
        assert engine.updates == [] and "pause" not in engine.control
        assert rig.pool.servers[0].state is ServerState.UP and rig.pool.policy_version == 1


async def test_an_update_goes_past_servers_that_another_proxy_is_at() -> None:
    """A newer label than ours: out of rotation, not taken back, until the store has told which version is the newest."""
    async with server_rig(servers=2) as rig:
        engine = rig.engines[0]
        engine.version, engine.model_path = "1", "/weights/v1"
        await until(lambda: rig.pool.servers[0].state is ServerState.DOWN, "the server to be left alone")
        rig.assert_true(await rig.start())
        assert engine.updates == [] and engine.exchanges == []
        rig.pool.commit(wanted(1))
        await rig.all_up()
        assert engine.updates == []


async def test_a_server_that_a_crashed_proxy_left_paused_is_continued() -> None:
    async with server_rig() as rig:
        rig.engines[0].paused = True
        call = rig.start()
        await until(lambda: rig.watcher._paused_since, "the pause to be noticed")
        rig.skip_s = 11.0
        rig.assert_true(await call)
        assert not rig.engines[0].paused


def test_labels() -> None:
    target = wanted(7)
    assert [version_of(label) for label in ("7", memory_label(target), "default", "receiving:7", "7+", None)] == [7, 7, -1, -1, -1, -1]
    assert holds(Weights("7", "/weights/v7"), target) and holds(Weights(memory_label(target), "/initial"), target)
    assert not holds(Weights("7", "/initial"), target) and not holds(Weights(memory_label(wanted(8)), "/weights/v8"), target)
