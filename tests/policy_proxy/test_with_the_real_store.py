"""The proxy on the real trajectory store and a real Redis: what the trainer would lease is what the server got and said."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from proxy_helpers import SYSTEM, Json, ProxyUnderTest, SessionClient, call_text, running_proxy, tool, user
from proxy_servers import ProxyProcess, free_port, wait_until
from real_store import stored_calls

from services.common.config import ExperimentConfig
from services.common.wire.calls import rows_of
from services.policy_proxy.prompts.rendering import Renderer


def test_a_session_from_opening_to_sealing(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    with running_proxy(model_folder, renderer, tmp_path) as proxy:
        proxy.start()
        proxy.says(call_text("look_up", city="Paris") + "<|im_end|>", "It rains.<|im_end|>", "Bye.<|im_end|>")
        session: SessionClient = proxy.open()
        messages = [SYSTEM, user("weather?")]
        called = session.say(messages, tools=[tool()], call_id="c0")
        messages += [called, {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "rain"}]
        messages += [session.say(messages, tools=[tool()], call_id="c1"), user("thanks")]
        proxy.restart()
        session.say(messages, tools=[tool()], call_id="c2")
        assert session.post(messages, tools=[tool()], call_id="c2").status_code == 200
        view = session.seal().json()
        assert (view["sealed"], view["n_calls"], view["open_intents"]) == (True, 3, [])
        assert session.post(messages, tools=[tool()], call_id="c3").status_code == 409
        records = stored_calls(store_url, session.session_id)
        assert [(record.call_id, record.parent) for record in records] == [("c0", None), ("c1", "c0"), ("c2", "c1")]
        sent = [exchange.input_ids + exchange.output_ids for exchange in proxy.engine.exchanges]
        assert [row.ids.tolist() for row in rows_of(records)] == sent


def at_other_port(config: ExperimentConfig) -> ExperimentConfig:
    """The same trial for another proxy."""
    port = {"port": free_port()}
    proxies = config.services.policy_proxy.model_copy(update=port)
    return config.model_copy(update={"services": config.services.model_copy(update={"policy_proxy": proxies})})


def elsewhere(session: SessionClient, url: str, messages: list[Json], call_id: str) -> httpx.Response:
    """A call of the session at another proxy."""
    headers = {"Authorization": f"Bearer {session.api_key}", "Idempotency-Key": call_id}
    body = {"model": "policy", "messages": messages}
    return httpx.post(f"{url}/v1/sessions/{session.session_id}/v1/chat/completions", json=body, headers=headers, timeout=60)


def assert_one_chain(proxy: ProxyUnderTest, store_url: str, session: SessionClient, calls: list[str]) -> None:
    records = stored_calls(store_url, session.session_id)
    parents = [None, *calls[:-1]]
    assert [(record.call_id, record.ordinal, record.parent) for record in records] == list(
        zip(calls, range(len(calls)), parents, strict=True)
    )
    finished = {exchange.rid: exchange for exchange in proxy.engine.exchanges if exchange.finish}
    sent = [finished[f"{call_id}.0"].input_ids + finished[f"{call_id}.0"].output_ids for call_id in calls]
    assert [row.ids.tolist() for row in rows_of(records)] == sent


def test_a_session_moves_between_proxies_and_outlives_the_kill_of_one(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One proxy knows nothing of what another one recorded until it is asked; one of the two is killed with -9 in mid-call."""
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    with running_proxy(model_folder, renderer, tmp_path) as proxy, ThreadPoolExecutor() as pool:
        proxy.start()
        other = ProxyProcess(at_other_port(proxy.config), tmp_path)
        try:
            other.start()
            moved, lost = proxy.open("moved"), proxy.open("lost")
            messages = [SYSTEM, user("hi")]
            messages += [moved.say(messages, call_id="c0"), user("more")]
            said = elsewhere(moved, other.url, messages, "c1").json()["choices"][0]["message"]
            messages += [said, user("still more")]
            messages += [moved.say(messages, call_id="c2"), user("the end")]
            rewards = f"{other.url}/v1/sessions/moved/rewards"
            headers = {"Authorization": f"Bearer {moved.api_key}"}
            assert httpx.post(rewards, json={"call_id": "c1", "value": 0.5}, headers=headers).status_code == 200
            proxy.engine.stall_generate = True
            calls: list[Future[httpx.Response]] = [
                pool.submit(elsewhere, moved, other.url, messages, "c3"),
                pool.submit(elsewhere, lost, other.url, [user("hi")], "c9"),
            ]
            wait_until(lambda: len(proxy.engine.running) == 2, 60, "the calls at the server")
        finally:
            other.kill()
        assert [type(call.exception()) for call in calls] == [httpx.RemoteProtocolError] * 2
        proxy.engine.stall_generate = False
        assert httpx.get(f"{store_url}/v1/sessions/moved").json()["open_intents"] == ["c3"]
        moved.say(messages, call_id="c3")
        view = moved.seal().json()
        assert (view["n_calls"], view["open_intents"], view["n_rewards"]) == (4, [], 1)
        assert_one_chain(proxy, store_url, moved, ["c0", "c1", "c2", "c3"])
        assert [row["reward"] for row in exported_rows(proxy, "moved")] == [0.5, 0.5, 0.0, 0.0]
        view = lost.seal().json()
        assert (view["n_calls"], view["open_intents"]) == (0, ["c9"]), "incomplete: the trainer gets no calls of it"


def exported_rows(proxy: ProxyUnderTest, session_id: str) -> list[Json]:
    return proxy.http.get(f"/v1/sessions/{session_id}/calls?view=rows").json()["calls"]
