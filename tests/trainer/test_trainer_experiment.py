"""A whole experiment against the real store: warm start, evaluation, PPO steps, evaluation, results; resuming; failing with a reason."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from rl_bench import playing
from trainer_helpers import AppThread, World, wait_until

from services.common.config import ExperimentConfig
from services.common.config.paths import results_file, trial_dir, weights_dir
from services.trainer import experiment as experiment_module
from services.trainer import sft as sft_module
from services.trainer.app import create_app
from services.trainer.engine import ComputeThread, open_engine
from services.trainer.experiment import Clients, Experiment
from services.trainer.phases import Phase
from services.trainer.proxy_client import ProxyClient
from services.trainer.recorder import Recorder
from services.trainer.runner_client import RunnerClient
from services.trainer.state import Report
from services.trainer.store_client import StoreClient

MakeConfig = Callable[..., ExperimentConfig]
StartStore = Callable[[ExperimentConfig], str]


@asynccontextmanager
async def opened(config: ExperimentConfig, store_url: str, world_url: str) -> AsyncIterator[Experiment]:
    async with (
        StoreClient(store_url, retry_s=5) as store,
        ProxyClient(world_url, retry_s=5) as proxy,
        RunnerClient(world_url) as runner,
    ):
        with ComputeThread() as compute:
            yield Experiment(config, Clients(store, proxy, runner), compute, open_engine)


async def test_an_experiment_runs_through_all_phases_and_accounts_for_every_trajectory(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str
) -> None:
    config = make_config(sft={"enabled": True}, dynamic_filter=None)
    store_url = start_store(config)
    async with playing(store_url, world, config), opened(config, store_url, world_url) as experiment:
        await asyncio.wait_for(experiment.run(), 110)
        assert experiment.view.phase is Phase.DONE, experiment.view.detail
    found = json.loads(results_file(config).read_text())
    assert found["ppo_steps"] == 3 and found["sft_steps"] == 4 and found["wall_s"] > 0
    assert 0 <= found["reward_before"] <= 1 and found["reward_after"] is not None and found["greedy_after"] is not None
    assert found["sources"] == {"telecom": "test 1.0"}
    score = found["eval_after"]["datasets"]["telecom/small"]
    assert score["floor"] == found["eval_after"]["floor"] == 0.25
    assert score["reward"]["low"] <= score["reward"]["value"] == found["reward_after"] <= score["reward"]["high"]
    assert list(score["pass_hat"]) == ["1", "2"] and len(found["eval_after"]["per_task"]["telecom/small"]) == 3
    assert found["trajectories_in"] == found["trained"] + found["dropped"] == 24
    assert found["lost"] == found["duplicated"] == 0
    assert found["other_kinds"]["demo"]["trained"] == 6 and found["other_kinds"]["eval"]["drops"] == {"eval": 18}
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    newest = weights_dir(config) / "v3"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in newest.iterdir()}
    losses = [line.values["sft/loss"] for line in experiment.recorder.lines(Phase.SFT)]
    assert len(losses) == 4 and losses[-1] < losses[0]


async def test_a_kill_at_any_moment_is_resumed_to_the_same_end(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft_module, "CHECKPOINT_EVERY", 1)
    config = make_config(sft={"enabled": True}, dynamic_filter=None, total_train_steps=2, gconfig={"n_samples": 2})
    store_url = start_store(config)
    async with playing(store_url, world, config):
        for life in range(60):
            async with opened(config, store_url, world_url) as experiment:
                run = asyncio.create_task(experiment.run())
                await asyncio.wait({run}, timeout=0.15 + 0.1 * life)
                done = run.done()
                run.cancel()
                await asyncio.gather(run, return_exceptions=True)
            if done:
                break
    assert experiment.view.phase is Phase.DONE
    found = json.loads(results_file(config).read_text())
    assert found["trained"] + found["dropped"] == found["trajectories_in"]
    assert found["lost"] == found["duplicated"] == 0
    assert [step["step"] for step in found["steps"]] == [1, 2]
    assert sum(step["episodes"] for step in found["steps"]) == found["trained"]


async def test_the_service_serves_the_experiment_and_stays_up_after_its_failure(
    make_config: MakeConfig, start_store: StartStore, world_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(actor={"kl_ctl": 0.1})
    store_url = start_store(config)
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    monkeypatch.setenv("FRONTDESK_POLICY_PROXY_URL", world_url)
    monkeypatch.setenv("FRONTDESK_AGENT_RUNNER_URL", world_url)

    def look() -> None:
        with AppThread(create_app(config)) as server, httpx.Client(base_url=server.url) as client:
            wait_until(lambda: client.get("/v1/experiment").json()["phase"] == "failed", what="the failure")
            told = client.get("/v1/experiment").json()
            assert "actor.kl_ctl" in told["detail"] and told["policy_version"] == -1
            assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
            assert client.get("/v1/metrics/summary").json()["rl"] == []
            assert "frontdesk_trainer_failed_state 1.0" in client.get("/metrics").text
            document = httpx.get(f"{store_url}/v1/documents/experiment").json()
            assert document["phase"] == "failed" and document["detail"] == told["detail"]

    await asyncio.to_thread(look)


async def test_a_failure_that_comes_again_and_again_ends_the_experiment(
    make_config: MakeConfig, start_store: StartStore, world: World, world_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_module, "PAUSE_S", 0.01)
    config = make_config()
    (Path(config.actor.path) / "model.safetensors").unlink()
    store_url = start_store(config)
    async with opened(config, store_url, world_url) as experiment:
        await asyncio.wait_for(experiment.run(), 110)
    assert experiment.view.phase is Phase.FAILED
    assert "no .safetensors file" in experiment.view.detail and "5 times" in experiment.view.detail


async def test_an_unknown_split_is_a_failure_that_names_the_dataset(
    make_config: MakeConfig, start_store: StartStore, world_url: str
) -> None:
    config = make_config(valid_dataset={"path": "telecom/smal"})
    store_url = start_store(config)
    async with opened(config, store_url, world_url) as experiment:
        await asyncio.wait_for(experiment.run(), 110)
    assert experiment.view.phase is Phase.FAILED and "dataset telecom/smal" in experiment.view.detail


async def test_metrics_survive_a_line_that_was_cut_short(make_config: MakeConfig, start_store: StartStore) -> None:
    config = make_config()
    file = trial_dir(config) / "metrics.jsonl"
    async with StoreClient(start_store(config)) as store:
        await Recorder(file, store).write(Report(step=1, phase="rl", values={"a": 1.0, "b": float("nan")}))
        with file.open("ab") as out:
            out.write(b'{"step": 2, "pha')
        recorder = Recorder(file, store)
        for step in (1, 2):
            await recorder.write(Report(step=step, phase="rl", values={"a": 2.0}))
    lines = Recorder(file, store).lines("rl")
    assert [(line.step, line.values) for line in lines] == [(1, {"a": 1.0, "nonfinite": 1.0}), (2, {"a": 2.0})]
