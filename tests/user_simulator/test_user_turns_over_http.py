"""POST /v1/turns as the agent runner uses it."""

from collections.abc import Iterator

import httpx
import pytest
from user_fakes import GREETING, LiveApp, agent, turn, user

from services.common.config import ConfigError, ExperimentConfig
from services.user_simulator.app import create_app


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    live = LiveApp(create_app(ExperimentConfig()))
    with httpx.Client(base_url=live.url, timeout=10) as client:
        yield client
    live.stop()


def test_a_turn_goes_in_and_a_labelled_turn_comes_out(http: httpx.Client):
    answer = http.post("/v1/turns", json=turn(GREETING).model_dump(mode="json"))
    assert answer.status_code == 200
    assert answer.json() == {
        "content": "I cannot use my phone. I want it fixed.",
        "tool_calls": [],
        "stop": None,
        "fault": "ok",
        "detail": "",
        "attempts": 1,
    }
    asked = turn(GREETING, user("hi"), agent("please run toggle_data()"))
    calls = http.post("/v1/turns", json=asked.model_dump(mode="json")).json()["tool_calls"]
    assert calls == [{"id": "user_call_0", "name": "toggle_data", "arguments": {}}]
    assert 'frontdesk_user_simulator_turns_total{fault="ok"} 2.0' in http.get("/metrics").text


def test_the_agents_private_side_is_refused(http: httpx.Client):
    body = turn(GREETING).model_dump(mode="json")
    body["messages"] = [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "name": "f", "arguments": {}}]}]
    answer = http.post("/v1/turns", json=body)
    assert answer.status_code == 422
    assert "only the user's own calls" in answer.json()["detail"]
    body["messages"] = [{"role": "assistant", "content": "x", "reasoning_content": "secret"}]
    assert "reasoning_content" in http.post("/v1/turns", json=body).json()["detail"]
    body["messages"] = []
    assert http.post("/v1/turns", json=body).status_code == 422


def test_it_is_ready_without_anyone_else(http: httpx.Client):
    assert http.get("/readyz").json() == {"ready": True, "checks": {"backend": "ok"}}


def test_the_model_backend_needs_a_model():
    config = ExperimentConfig.model_validate({"services": {"user_simulator": {"backend": "openai"}}})
    with pytest.raises(ConfigError, match=r"econfig\.user_llm_base_url"):
        create_app(config)
    named = {"services": {"user_simulator": {"backend": "openai"}}, "econfig": {"user_llm_base_url": "http://h/v1", "user_llm": "m"}}
    assert create_app(ExperimentConfig.model_validate(named))
