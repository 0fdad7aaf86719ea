"""Rewards over the proxy's own routes, the views of a session, and which names of a session a request may use together."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from proxy_helpers import SYSTEM, ProxyUnderTest, SessionClient, running_proxy, user
from real_store import running_store

from services.policy_proxy.prompts.rendering import Renderer


@pytest.fixture(scope="module")
def stored_proxy(model_folder: Path, renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyUnderTest]:
    """A proxy over the real store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDIS_URL", raising=False)
        with running_store(tmp_path_factory.mktemp("store")) as url:
            patch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", url)
            with running_proxy(model_folder, renderer, tmp_path_factory.mktemp("trial")) as proxy:
                proxy.start()
                yield proxy


@pytest.fixture
def session(stored_proxy: ProxyUnderTest) -> SessionClient:
    """A session with two calls, c0 and c1."""
    stored_proxy.reset()
    stored_proxy.says("Hello.<|im_end|>", "It rains.<|im_end|>")
    session = stored_proxy.open()
    messages = [SYSTEM, user("hi")]
    messages += [session.say(messages, call_id="c0"), user("weather?")]
    session.say(messages, call_id="c1", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}, temperature=0.5)
    return session


def post_reward(session: SessionClient, key: str = "", **body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or session.api_key}"}
    return session.proxy.http.post(f"/v1/sessions/{session.session_id}/rewards", json={"value": 1.0, **body}, headers=headers)


def view(session: SessionClient, query: str = "") -> dict:
    answer = session.proxy.http.get(f"/v1/sessions/{session.session_id}/calls{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_rewards_of_calls_and_of_the_session(session: SessionClient) -> None:
    assert post_reward(session, call_id="c0", value=0.5, source="judge").json() == {
        "call_id": "c0",
        "name": "reward",
        "value": 0.5,
        "source": "judge",
        "whole": False,
    }
    assert post_reward(session, call_id="c0", value=None, name="format").status_code == 200
    assert session.seal().status_code == 200
    assert post_reward(session, value=2).status_code == 200, "rewards may come after sealing"
    for body, param in (({"call_id": "c9"}, "call_id"), ({"value": "x"}, "body.value"), ({"reward": 1}, "body.reward")):
        refused = post_reward(session, **body)
        assert refused.status_code == 400
        assert param in refused.json()["error"]["message"]
    listed = session.proxy.http.get(f"/v1/sessions/{session.session_id}/rewards").json()["items"]
    assert [(item["call_id"], item["name"], item["value"]) for item in listed] == [
        (None, "reward", 2.0),
        ("c0", "format", None),
        ("c0", "reward", 0.5),
    ]
    rows = view(session, "?view=rows&discount=0.5")["calls"]
    assert [row["reward"] for row in rows] == [1.5, 2.0]


def test_rewards_need_a_key_of_the_session_or_the_admins(session: SessionClient, monkeypatch: pytest.MonkeyPatch) -> None:
    other = session.proxy.open()
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "sesame-sesame")
    assert post_reward(session, key=other.api_key).status_code == 403
    assert post_reward(session, key="fd-forged.key").status_code == 401
    path = f"/v1/sessions/{session.session_id}/rewards"
    assert session.proxy.http.post(path, json={"value": 1.0}).status_code == 401


def test_the_views_of_a_session(session: SessionClient) -> None:
    messages = view(session, "?view=messages")
    assert (messages["sealed"], messages["open_intents"], messages["rewards"]) == (False, [], [])
    first, second = messages["calls"]
    assert first["new_prompt"].startswith("<|im_start|>system\n")
    assert first["message"] == {"role": "assistant", "content": "Hello."}
    assert "weather?" in second["new_prompt"]
    assert "Hello" not in second["new_prompt"], "a prompt shows what is new since its parent"
    assert "output_ids" not in second
    assert second["trace_id"] == "ab" * 16
    assert second["sampling"]["temperature"] == second["temperature"] == 0.5
    tokens = view(session)
    assert tokens["view"] == "tokens"
    exchange = session.proxy.engine.exchanges[1]
    both = [call["prompt_ids"] + call["output_ids"] for call in tokens["calls"]]
    assert both[0] + both[1] == exchange.input_ids + exchange.output_ids
    assert len(tokens["calls"][1]["logprobs"]) == len(exchange.output_ids)
    [row] = view(session, "?view=rows&style=concat")["calls"]
    assert row["ids"] == exchange.input_ids + exchange.output_ids
    assert [call["call_id"] for call in view(session, "?view=rows")["calls"]] == ["c0", "c1"]


@pytest.mark.parametrize("query", ["view=all", "view=rows&style=merged", "discount=2", "discount=nan"])
def test_an_unknown_view_is_refused(session: SessionClient, query: str) -> None:
    refused = session.proxy.http.get(f"/v1/sessions/{session.session_id}/calls?{query}")
    assert refused.status_code == 400


def test_key_path_and_header_name_one_session(session: SessionClient) -> None:
    other = session.proxy.open()
    body = {"model": "m", "messages": [user("hi")]}

    def post(path: str, key: str, named: str = "") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"} | ({"X-Session-Id": named} if named else {})
        answer = session.proxy.http.post(f"{path}/chat/completions", json=body, headers=headers)
        return answer.status_code, answer.json().get("error", {}).get("message", "")

    path = f"/v1/sessions/{session.session_id}/v1"
    assert post("/v1", session.api_key)[0] == 200
    assert post("/v1", session.api_key, session.session_id)[0] == 200
    assert post(path, session.api_key, session.session_id)[0] == 200
    for where in (path, "/v1"):
        status, message = post(where, session.api_key, other.session_id)
        assert status == 400
        assert session.session_id in message
        assert other.session_id in message
    assert post(path, other.api_key)[0] == 403
    assert post("/v1", "sk-unknown")[0] == 401
    assert post("/v1", f"{session.api_key}0")[0] == 401
