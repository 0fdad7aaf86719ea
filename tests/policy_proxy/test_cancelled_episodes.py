"""Cancelling a leased episode through everything that is real: runner, proxy, store, Redis; the policy server is told to stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from proxy_helpers import Json, call_text, running_proxy
from proxy_servers import ServerThread, wait_until

from services.agent_runner.app import create_app
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import RolloutRequest, TaskRef
from services.policy_proxy.prompts.rendering import Renderer


@contextmanager
def running_runner(store_url: str, proxy_url: str) -> Iterator[httpx.Client]:
    """A runner that plays mock's tasks in solo mode."""
    services: Json = {"trajectory_store": {"url": store_url}, "policy_proxy": {"url": proxy_url}}
    config = ExperimentConfig.model_validate(
        {
            "services": services,
            "econfig": {"domain": "mock", "solo_mode": True, "backend": "inspect_evals"},
            "train_dataset": {"path": "mock/base"},
        }
    )
    with ServerThread(lambda: create_app(config)) as runner, httpx.Client(base_url=runner.url, timeout=20) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200, 60, "the runner")
        yield http


def enqueue(store: httpx.Client, episode_id: str) -> None:
    task = TaskRef(domain="mock", split="base", task_id="create_task_1", solo_mode=True)
    request = RolloutRequest(episode_id=episode_id, group_id=f"group-{episode_id}", task=task)
    assert store.post("/v1/rollouts", json={"requests": [request.model_dump(mode="json")]}).status_code == 200


def trajectory(store: httpx.Client, episode_id: str) -> dict[str, Any] | None:
    answer = store.get(f"/v1/trajectories/{episode_id}")
    return answer.json() if answer.status_code == 200 else None


def test_cancelling_reaches_the_policy_server_and_nothing_is_retried(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    with running_proxy(model_folder, renderer, tmp_path, gconfig={"max_tokens": 16384}) as proxy, httpx.Client(base_url=store_url) as store:
        proxy.start()
        proxy.says(call_text("get_users") + "<|im_end|>")
        with running_runner(store_url, proxy.thread.url) as runner:
            proxy.engine.token_delay_s = 0.02
            enqueue(store, "e1")
            wait_until(lambda: len(proxy.engine.exchanges) >= 2, 20, "the second call")
            proxy.engine.stall_generate = True
            wait_until(lambda: len(proxy.engine.running) == 1 and not proxy.engine.exchanges[-1].output_ids, 20, "a call that hangs")
            [rid] = proxy.engine.running
            assert runner.post("/v1/episodes/e1/cancel").status_code == 202
            wait_until(lambda: trajectory(store, "e1"), 20, "the trajectory")
            assert proxy.engine.aborted == [rid]
            assert not proxy.engine.running
            stored = trajectory(store, "e1")
            assert stored is not None
            assert (stored["status"], stored["reward"], stored["attempt"]) == ("failed", None, 1)
            assert stored["failure"] == {"who": "infra", "why": "cancelled by request", "final": True}
            assert stored["n_turns"] >= 1
            session = store.get("/v1/sessions/e1.a1").json()
            assert (session["sealed"], session["open_intents"]) == (True, [rid.removesuffix(".0")])
            counts = store.get("/v1/stats").json()["total"]
            assert (counts["queued"], counts["running"], counts["retries"], counts["lost"]) == (0, 0, 0, 0)
            assert proxy.state()["inflight"] == 0
            assert store.get("/v1/audit").json()["balanced"]
