"""The PPO loop against the real store: accounts, filters, staleness, and a crash after each stage of a step."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
from rl_bench import Process, playing, trainer_process
from trainer_helpers import World

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind
from services.trainer import rl
from services.trainer.phases import Phase
from services.trainer.rl import drop_unused

MakeConfig = Callable[..., ExperimentConfig]
StartStore = Callable[[ExperimentConfig], str]


def trajectories(store_url: str) -> list[dict[str, Any]]:
    return httpx.get(f"{store_url}/v1/trajectories", params={"kind": "train", "limit": 1000}).json()["items"]


def post(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(url, json=body)


def account(store_url: str) -> dict[str, int]:
    """The store's train counts, after its own audit found nothing wrong."""
    audit = httpx.get(f"{store_url}/v1/audit").json()
    assert audit["balanced"], audit
    stats = httpx.get(f"{store_url}/v1/stats").json()
    assert stats["total"]["lost"] == stats["total"]["duplicated"] == 0
    return stats["kinds"]["train"]


def trained_in_log(process: Process) -> int:
    return round(sum(line.values["ppo_actor/n_episodes"] for line in process.recorder.lines(Phase.RL)))


async def step_until(process: Process, last: str) -> None:
    """Runs the stages of one step up to and with ``last``."""
    await process.loop.resume()
    for name, stage in process.loop.stages():
        await asyncio.wait_for(stage(), 30)
        if name == last:
            return


async def test_what_is_trained_is_what_the_store_handed_out(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config), trainer_process(config, store_url, world_url) as process:
        await asyncio.wait_for(process.loop.run(), 110)
        counts = account(store_url)
        lines = process.recorder.lines(Phase.RL)
        stored = trajectories(store_url)
    assert [line.step for line in lines] == [1, 2, 3]
    assert counts["trained"] == trained_in_log(process) == 3 * 2 * 4 == len(stored)
    for line in lines:
        values = line.values
        assert values["rollout/n_rows"] == values["ppo_actor/n_seqs"] == 2 * values["ppo_actor/n_episodes"]
        assert values["rollout/reward"] == pytest.approx(values["ppo_actor/task_reward/avg"])
        tokens = {name: value for name, value in values.items() if name.startswith("rollout/version_tokens/")}
        assert sum(tokens.values()) == values["ppo_actor/n_valid_tokens"] == 8 * values["ppo_actor/n_episodes"]
        assert {name.replace("rollout", "ppo_actor"): value for name, value in tokens.items()}.items() <= values.items()
        assert values.get("ppo_actor/behave_logp_diff_current/avg", 0.0) < 1e-5
    assert "ppo_actor/behave_logp_diff_current/avg" in lines[0].values
    rewards = sum(line.values["ppo_actor/task_reward/avg"] * line.values["ppo_actor/n_episodes"] for line in lines)
    assert rewards == pytest.approx(sum(item["reward"] for item in stored))
    assert world.updates == [0, 1, 2, 3]


async def test_rollouts_run_ahead_of_training_but_no_further_than_allowed(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=4, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config), trainer_process(config, store_url, world_url) as process:
        await asyncio.wait_for(process.loop.run(), 110)
        oldest = [line.values["ppo_actor/update/version_stats/sample_staleness_theta_max"] for line in process.recorder.lines(Phase.RL)]
    assert oldest[0] == 0
    assert max(oldest) == 1


STAGES = ["collect", "train", "save", "commit", "ack", "publish", "feed", "report"]


@pytest.mark.parametrize("last", STAGES)
async def test_a_crash_after_any_stage_loses_nothing_and_trains_nothing_twice(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str, last: str
) -> None:
    config = make_config(total_train_steps=2, dynamic_filter=None, gconfig={"n_samples": 2})
    store_url = start_store(config)
    async with playing(store_url, world, config):
        async with trainer_process(config, store_url, world_url) as process:
            await step_until(process, last)
        async with trainer_process(config, store_url, world_url) as process:
            assert process.state.step == (0 if STAGES.index(last) < STAGES.index("commit") else 1)
            await asyncio.wait_for(process.loop.run(), 110)
            counts = account(store_url)
    assert [line.step for line in process.recorder.lines(Phase.RL)] == [1, 2]
    assert counts["trained"] == trained_in_log(process) == 2 * 2 * 2
    assert sorted(set(world.updates)) == [0, 1, 2]


@pytest.mark.parametrize("last", ["collect", "save", "feed"])
async def test_a_crash_does_not_let_rollouts_run_further_ahead(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str, last: str
) -> None:
    config = make_config(total_train_steps=2, dynamic_filter=None, gconfig={"n_samples": 2}, rollout={"max_head_offpolicyness": 0})
    store_url = start_store(config)
    async with playing(store_url, world, config):
        async with trainer_process(config, store_url, world_url) as process:
            await step_until(process, last)
        async with trainer_process(config, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 110)
            counts = account(store_url)
    # A group too many would have waited for the next version and be stale by then.
    assert (counts["trained"], counts["drops"]) == (2 * 2 * 2, {})


async def test_a_batch_the_store_took_back_after_the_commit_is_acked_and_not_trained_again(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(total_train_steps=2, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config):
        with monkeypatch.context() as patch:
            patch.setattr(rl, "BATCH_TTL_S", 0.05)
            async with trainer_process(config, store_url, world_url) as process:
                await step_until(process, "commit")
        await asyncio.sleep(0.1)
        body = {"consumer_id": "other", "kind": "train", "n_groups": 4, "ttl_s": 60, "wait_s": 0, "allow_partial": True}
        assert post(f"{store_url}/v1/batches/lease", body).content
        held = process.state.acks[0].batch_id
        assert post(f"{store_url}/v1/batches/{held}/extend", {"ttl_s": 1}).status_code == 409
        # The other consumer goes away; its groups come back to the trainer.
        body |= {"ttl_s": 0.05}
        post(f"{store_url}/v1/batches/lease", body)
        await asyncio.sleep(0.1)
        async with trainer_process(config, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 110)
            await drop_unused(process.parts, process.state, 5)
            counts = account(store_url)
    assert counts["trained"] == trained_in_log(process)
    assert counts["trajectories_in"] == counts["trained"] + counts["dropped"]


async def test_a_batch_whose_ack_was_forgotten_is_acked_again_and_not_trained_again(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=2, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config), trainer_process(config, store_url, world_url) as process:
        await process.loop.resume()
        for name, stage in process.loop.stages():
            # The state after a Redis that lost the last second: the trainer has acked, the store does not know.
            if name != "ack":
                await asyncio.wait_for(stage(), 110)
        await asyncio.wait_for(process.loop.run(), 110)
        counts = account(store_url)
    assert counts["trained"] == trained_in_log(process) == 16


async def test_a_batch_that_a_power_cut_took_is_not_trained_again(
    make_config: MakeConfig, start_store: StartStore, redis_url: str, world: World, world_url: str
) -> None:
    """The trainer has committed a step with it; the store knows neither the batch nor that its groups were handed out."""
    config = make_config(total_train_steps=2, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config):
        async with trainer_process(config, store_url, world_url) as process:
            await step_until(process, "commit")
        held = process.state.acks[0].batch_id
        assert post(f"{store_url}/v1/batches/{held}/nack", {}).status_code == 204
        with redis.Redis.from_url(redis_url) as raw:
            assert raw.delete(*raw.keys(f"*batch:{held}")) == 1
        assert post(f"{store_url}/v1/batches/{held}/extend", {"ttl_s": 1}).status_code == 404
        async with trainer_process(config, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 110)
            await drop_unused(process.parts, process.state, 5)
            counts = account(store_url)
    assert counts["trained"] == trained_in_log(process) == 16
    assert counts["trajectories_in"] == counts["trained"] + counts["dropped"]


async def test_groups_without_signal_are_dropped_with_their_reason_and_replaced(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=2)
    store_url = start_store(config)
    async with playing(store_url, world, config) as player:
        # Every third group fails throughout, every third succeeds throughout.
        player.reward = lambda r: {0: 0.0, 1: 1.0}.get(int(r.group_id[-5:]) % 3, float(r.sample_index % 2))
        async with trainer_process(config, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 110)
            await drop_unused(process.parts, process.state, 5)
            counts = account(store_url)
    assert process.state.step == 2
    assert counts["drops"].keys() >= {"filtered_all_fail", "filtered_all_success"}
    assert counts["trained"] == trained_in_log(process) > 0
    assert counts["trajectories_in"] == counts["trained"] + counts["dropped"]


async def test_a_failed_member_costs_itself_and_not_its_group(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=1, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config) as player:
        player.fail = lambda request: request.sample_index == 2
        # Two calls were made in each episode, so the one reward of sample 1 belongs to nobody knows which.
        player.turn_rewards = lambda request, reward: [0.3] if request.sample_index == 1 else [reward - 0.1, reward]
        async with trainer_process(config, store_url, world_url) as process:
            await asyncio.wait_for(process.loop.run(), 110)
            counts = account(store_url)
    assert counts["drops"] == {"failed_policy": 2, "turn_rewards_mismatch": 2}
    assert counts["trained"] == 4


async def test_datasets_are_mixed_in_their_shares(make_config: MakeConfig, start_store: StartStore, world: World, world_url: str) -> None:
    config = make_config(
        total_train_steps=2,
        dynamic_filter=None,
        gconfig={"n_samples": 2},
        econfig={"solo_mode": False},
        train_dataset={"path": "", "mix": {"telecom/small": 3, "airline/full": 1}, "batch_size": 4},
    )
    store_url = start_store(config)
    async with playing(store_url, world, config), trainer_process(config, store_url, world_url) as process:
        await asyncio.wait_for(process.loop.run(), 110)
        played = Counter((item["task"]["domain"], item["task"]["split"]) for item in trajectories(store_url))
    assert played == {("telecom", "small"): 12, ("airline", "full"): 4}
    values = [line.values for line in process.recorder.lines(Phase.RL)]
    assert sum(line["rollout/n_episodes/airline"] for line in values) == 4 and "rollout/reward/telecom" in values[0]
    assert process.state.sources == {"telecom": "test 1.0", "airline": "test 1.0"}


async def test_nothing_is_asked_for_beyond_the_last_step(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(total_train_steps=1, dynamic_filter=None, rollout={"max_head_offpolicyness": 3, "max_concurrent_rollouts": 50})
    store_url = start_store(config)
    async with playing(store_url, world, config) as player, trainer_process(config, store_url, world_url) as process:
        await asyncio.wait_for(process.loop.run(), 110)
        assert await process.parts.store.groups(Kind.TRAIN) == (0, 0)
    assert len(player.played) == 2 * 4
