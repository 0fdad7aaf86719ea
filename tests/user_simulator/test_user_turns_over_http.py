"""The service over HTTP as the agent runner uses it: turns, labels, limits, and which back end a config means."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import Sglang
from user_fakes import GREETING, LiveApp, agent, turn, user

from services.common.config import ConfigError, ExperimentConfig
from services.user_simulator.app import backend_of, create_app


def config(econfig: dict[str, Any] | None = None, **service: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"econfig": econfig or {}, "services": {"user_simulator": service}})


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
    asked = turn(GREETING, user("I cannot use my phone. I want it fixed."), agent("please run toggle_data()"))
    calls = http.post("/v1/turns", json=asked.model_dump(mode="json")).json()["tool_calls"]
    assert calls == [{"id": "user_call_0", "name": "toggle_data", "arguments": {}}]
    assert 'frontdesk_user_simulator_turns_total{fault="ok"} 2.0' in http.get("/metrics").text
    faults = http.get("/v1/faults").json()
    assert (faults["turns"], faults["counts"], faults["rates"]) == (2, {"ok": 2}, {"ok": 1.0})


def test_the_agents_private_side_is_refused(http: httpx.Client):
    body = turn(GREETING).model_dump(mode="json")
    body["messages"] = [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "name": "f", "arguments": {}}]}]
    answer = http.post("/v1/turns", json=body)
    assert answer.status_code == 422
    assert "only the user's own calls" in answer.json()["detail"]
    body["messages"] = [{"role": "assistant", "content": "x", "reasoning_content": "secret"}]
    assert "body.messages.0.reasoning_content" in http.post("/v1/turns", json=body).json()["detail"]
    body["messages"] = []
    assert http.post("/v1/turns", json=body).status_code == 422
    answer = http.post("/v1/turns", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")


def test_the_routes_are_documented_with_their_schemas(http: httpx.Client):
    paths = http.get("/openapi.json").json()["paths"]
    assert "UserTurnBody" in str(paths["/v1/turns"]["post"]["requestBody"])
    assert "UserTurnReply" in str(paths["/v1/turns"]["post"]["responses"]["200"])


def test_it_is_ready_without_anyone_else(http: httpx.Client):
    assert http.get("/readyz").json() == {"ready": True, "checks": {"backend": "ok"}}


async def test_turns_beyond_the_limit_are_refused_and_told_when_to_come_back(sglang: Sglang):
    sglang.control("stall")
    econfig = {"user_llm": "qwen", "user_llm_base_url": f"{sglang.base_url}/"}
    live = await asyncio.to_thread(LiveApp, create_app(config(econfig, max_inflight_turns=2, turn_timeout_s=1.0)))
    try:
        async with httpx.AsyncClient(base_url=live.url, timeout=10) as client:
            body = turn(GREETING).model_dump(mode="json")
            answers = await asyncio.gather(*(client.post("/v1/turns", json=body) for _ in range(5)))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert (refused.headers["retry-after"], refused.json()["code"]) == ("1", "busy")
            assert {answer.json()["fault"] for answer in answers if answer.status_code == 200} == {"backend_error"}
            assert (await client.get("/v1/faults")).json()["rates"] == {"backend_error": 1.0}
            sglang.control("ok")
            assert (await client.post("/v1/turns", json=body)).json()["fault"] == "ok"
    finally:
        await asyncio.to_thread(live.stop)


async def test_a_model_server_that_is_away_makes_the_service_unready():
    live = await asyncio.to_thread(LiveApp, create_app(config({"user_llm": "qwen", "user_llm_base_url": "http://127.0.0.1:9/v1"})))
    try:
        async with httpx.AsyncClient(base_url=live.url, timeout=10) as client:
            answer = await client.get("/readyz")
            assert (answer.status_code, (await client.get("/healthz")).status_code) == (503, 200)
            assert "unreachable" in answer.json()["checks"]["backend"]
    finally:
        await asyncio.to_thread(live.stop)


MODEL = {"user_llm": "openai/self-hosted-Qwen2.5-72B", "user_llm_args": {"temperature": 0.0, "max_completion_tokens": 512}}


def test_areals_keys_alone_choose_the_back_end():
    assert backend_of(config()) == "scripted"
    assert backend_of(config(MODEL | {"user_llm_base_url": "http://localhost:30000/v1/"})) == "openai"
    assert backend_of(config({"user_llm": "gpt-4.1"})) == "litellm"
    assert backend_of(config(MODEL | {"user_llm_base_url": "http://h/v1"}, backend="scripted")) == "scripted"


@pytest.mark.parametrize(
    ("econfig", "service", "message"),
    [
        ({}, {"backend": "openai"}, r"econfig\.user_llm"),
        ({"user_llm": "m"}, {"backend": "openai"}, r"econfig\.user_llm_base_url"),
        ({"user_llm_base_url": "http://h/v1"}, {}, r"econfig\.user_llm,"),
        ({"user_llm": "m", "user_llm_args": {"api_key": "x"}}, {}, r"econfig\.user_llm_args\.api_key"),
        ({}, {"server": {"command": ["x"], "ready_url": "http://h"}}, r"services\.user_simulator\.server"),
    ],
)
def test_a_config_that_lacks_something_says_what(econfig: dict[str, Any], service: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        create_app(config(econfig, **service))


def test_litellm_is_not_imported_unless_it_is_configured():
    build = (
        "import sys; from services.common.config import ExperimentConfig; from services.user_simulator.app import create_app; "
        "create_app(ExperimentConfig.model_validate({'econfig': {'user_llm': 'm', 'user_llm_base_url': 'http://h/v1'}})); "
        "sys.exit('litellm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", build], check=True, timeout=60)
