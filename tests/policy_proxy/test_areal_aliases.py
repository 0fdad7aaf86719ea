"""Agents and clients written for AReaL's proxy: its routes, bodies and statuses, over the real store."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from areal_agent import ArealClient, TalkativeAgent, arrays_of, bearer
from openai import OpenAI
from proxy_helpers import SYSTEM, ProxyUnderTest, running_proxy, user
from proxy_servers import wait_until
from real_store import running_store, stored_calls

from services.policy_proxy.prompts.rendering import Renderer

DATA = {"messages": [SYSTEM, user("hi")], "task_id": "7"}


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDIS_URL", raising=False)
        with running_store(tmp_path_factory.mktemp("store")) as url:
            yield url


@pytest.fixture(scope="module")
def areal_proxy(
    module_store: str, model_folder: Path, renderer: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxyUnderTest]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", module_store)
        settings = {"areal_capacity": 0, "areal_export_wait_s": 1.0}
        with running_proxy(model_folder, renderer, tmp_path_factory.mktemp("trial"), **settings) as proxy:
            proxy.start()
            yield proxy


@pytest.fixture
async def areal(areal_proxy: ProxyUnderTest) -> AsyncIterator[ArealClient]:
    areal_proxy.reset()
    async with httpx.AsyncClient(base_url=areal_proxy.thread.url, timeout=30) as http:
        yield ArealClient(http, {})


async def begin(areal: ArealClient, task_id: str, **extra: str) -> tuple[str, str]:
    """A session with a grant: its id and key."""
    (await areal.http.post("/grant_capacity")).raise_for_status()
    started = (await areal.start(task_id, **extra)).raise_for_status().json()
    return started["session_id"], started["api_key"]


async def speak(areal: ArealClient, key: str, text: str = "hi", **headers: str) -> httpx.Response:
    body = {"model": "m", "messages": [user(text)]}
    return await areal.http.post("/chat/completions", json=body, headers=bearer(key) | headers)


@pytest.mark.parametrize("dense", [False, True])
async def test_an_episode_of_an_areal_agent(areal: ArealClient, areal_proxy: ProxyUnderTest, module_store: str, dense: bool) -> None:
    areal_proxy.says("one<|im_end|>", "two<|im_end|>", "three<|im_end|>")
    session_id, interactions = await areal.episode(TalkativeAgent(3, dense=dense), f"7:{dense}", DATA, discount=0.5)
    assert session_id == f"7:{dense}-0"
    records = stored_calls(module_store, session_id)
    assert list(interactions) == [record.call_id for record in records]
    assert [record.parent for record in records] == [None, records[0].call_id, records[1].call_id]
    assert [item["reward"] for item in interactions.values()] == ([1.0, 2.0, 2.0] if dense else [0.25, 0.5, 1.0])
    sent = [exchange.input_ids + exchange.output_ids for exchange in areal_proxy.engine.exchanges]
    for item, record, ids in zip(interactions.values(), records, sent, strict=True):
        tensors = item["tensor_dict"]
        n_output, logprobs = len(record.output_ids()), record.output_logprobs()
        assert tensors["input_ids"][0].tolist() == ids
        assert tensors["loss_mask"][0].tolist() == [0] * (len(ids) - n_output) + [1] * n_output
        assert logprobs is not None
        assert tensors["logprobs"][0, -n_output:].tolist() == logprobs.tolist()
        assert tensors["versions"][0].tolist() == [-1] * (len(ids) - n_output) + [0] * n_output


async def test_concat_exports_the_whole_conversation_as_one_row(areal: ArealClient) -> None:
    session_id, interactions = await areal.episode(TalkativeAgent(3), "concat", DATA, style="concat")
    [item] = interactions.values()
    assert item["reward"] == 1.0
    assert sorted(set(item["tensor_dict"]["turn_ids"][0].tolist())) == [-1, 0, 1, 2]
    again = (await areal.export(session_id)).json()["interactions"]
    assert len(again) == 3, "what AReaL takes away with the first export can be had again here"
    view = (await areal.http.get(f"/v1/sessions/{session_id}/calls?view=rows&style=concat")).json()
    assert view["calls"][0]["ids"] == item["tensor_dict"]["input_ids"][0].tolist()
    assert view["calls"][0]["reward"] == 1.0


async def test_sessions_take_grants_and_numbers(areal: ArealClient) -> None:
    refused = await areal.start("t")
    assert refused.status_code == 429
    assert "grant_capacity" in refused.json()["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await areal.http.post("/grant_capacity")).json() == {"capacity": 1}
    assert (await areal.http.post("/grant_capacity")).json() == {"capacity": 2}
    names = [(await areal.start("t")).json()["session_id"] for _ in range(2)]
    assert names == ["t-0", "t-1"]
    assert (await areal.start("t")).status_code == 429
    odd, _ = await begin(areal, "[mobile_data]roaming|none")
    assert odd.startswith("task._mobile_data_roaming_none.")
    assert odd.endswith("-0")


async def test_a_key_of_the_callers_names_one_session_at_a_time(areal: ArealClient, module_store: str) -> None:
    first, key = await begin(areal, "k", api_key="sk-mine")
    assert key == "sk-mine"
    assert (await speak(areal, key)).status_code == 200
    await areal.http.post("/grant_capacity")
    taken = await areal.start("k", api_key="sk-mine")
    assert (taken.status_code, taken.json()["code"]) == (409, "key_bound")
    assert (await areal.end(key)).status_code == 200
    second = (await areal.start("k", api_key="sk-mine")).json()
    assert second["session_id"] != first
    assert (await speak(areal, key)).status_code == 200
    assert len(stored_calls(module_store, first)) == len(stored_calls(module_store, second["session_id"])) == 1
    own = (await areal.http.post("/v1/sessions", json={})).json()["api_key"]
    assert (await areal.start("k", api_key=own)).status_code == 400


async def test_rewards_until_the_export_and_what_is_refused(areal: ArealClient) -> None:
    session_id, key = await begin(areal, "r")
    empty = await areal.set_reward(key, None, 1.0)
    assert (empty.status_code, empty.json()["detail"]) == (400, "no interactions in this session yet")
    call_id = (await speak(areal, key)).json()["id"]
    assert (await areal.set_reward(key, "nobody", 1.0)).status_code == 400
    assert (await areal.set_reward(key, call_id, 1.0)).status_code == 200
    assert (await areal.set_reward(key, None, 2.0)).status_code == 200, "the last interaction again: the newer reward stands"
    for _ in range(2):
        assert (await areal.end(key)).json() == {"message": "success", "interaction_count": 1}
    assert (await speak(areal, key)).status_code == 409
    assert (await areal.set_reward(key, call_id, 0.5)).status_code == 200
    interactions = (await areal.export(session_id)).json()["interactions"]
    assert interactions[call_id]["reward"] == 0.5
    assert (await areal.set_reward(key, call_id, 0.75)).status_code == 410
    assert (await areal.end(key)).status_code == 410
    assert (await areal.set_reward("sk-nobody", None, 1.0)).status_code == 401
    assert (await areal.http.post("/rl/end_session")).status_code == 401


async def test_an_export_waits_for_the_end_and_no_longer_than_it_may(areal: ArealClient) -> None:
    session_id, key = await begin(areal, "w")
    assert (await areal.export("nobody")).status_code == 404
    assert (await areal.export("no/id")).status_code == 404
    assert (await areal.export(session_id, style="merged")).status_code == 422
    late = await areal.export(session_id)
    assert (late.status_code, late.json()["code"]) == (504, "not_ended")
    waiting = asyncio.create_task(areal.export(session_id))
    assert (await areal.end(key)).status_code == 200
    assert (await waiting).json() == {"interactions": {}}


async def test_what_was_begun_and_never_recorded_is_not_trained_on(areal: ArealClient, areal_proxy: ProxyUnderTest) -> None:
    """The agent gives up waiting and asks again with a call of its own: the first one stays open."""
    session_id, key = await begin(areal, "i")
    areal_proxy.engine.stall_generate = True
    waiting = asyncio.create_task(speak(areal, key))
    await asyncio.to_thread(wait_until, lambda: areal_proxy.engine.running, 60)
    waiting.cancel()
    await asyncio.to_thread(wait_until, lambda: not areal_proxy.engine.running, 60)
    areal_proxy.engine.stall_generate = False
    answered = (await speak(areal, key)).json()["id"]
    assert (await areal.end(key)).status_code == 200
    refused = await areal.export(session_id)
    assert (refused.status_code, refused.json()["code"]) == (409, "session_incomplete")
    kept = await areal.export(session_id, drop_retry_orphans=True)
    assert list(kept.json()["interactions"]) == [answered], "the agent asked for its retries to be dropped"


async def test_the_end_waits_for_calls_in_flight(areal: ArealClient, areal_proxy: ProxyUnderTest) -> None:
    areal_proxy.engine.token_delay_s = 0.2
    session_id, key = await begin(areal, "f")
    call = asyncio.create_task(speak(areal, key))
    await asyncio.to_thread(wait_until, lambda: areal_proxy.engine.running, 60)
    assert (await areal.end(key)).json()["interaction_count"] == 1
    assert (await call).status_code == 200
    exported = (await areal.export(session_id)).json()["interactions"]
    assert arrays_of(next(iter(exported.values())))["tensor_dict"]["loss_mask"].sum() > 0


async def test_the_other_apis_and_the_header_at_the_root(areal: ArealClient, areal_proxy: ProxyUnderTest) -> None:
    session_id, key = await begin(areal, "a")
    assert (await speak(areal, key, **{"X-Session-Id": session_id})).status_code == 200
    other = await speak(areal, key, **{"X-Session-Id": "another"})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "X-Session-Id")

    def respond() -> str:
        with OpenAI(base_url=areal_proxy.thread.url, api_key=key, max_retries=0) as client:
            return client.responses.create(model="m", input="hi").id

    response_id = await asyncio.to_thread(respond)
    body = {"model": "m", "max_tokens": 16, "messages": [user("hi")]}
    message = await areal.http.post("/v1/messages", json=body, headers={"x-api-key": key})
    for interaction_id in (response_id, message.json()["id"]):
        assert (await areal.set_reward(key, interaction_id, 1.0)).status_code == 200
    assert (await areal.end(key)).json()["interaction_count"] == 3


async def test_the_admin_key(areal: ArealClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "sesame-sesame")
    assert (await areal.start("s")).status_code == 401
    areal.admin = bearer("sesam")
    assert (await areal.start("s")).status_code == 403
    areal.admin = bearer("sesame-sesame")
    assert (await areal.start("s", api_key="sesame-sesame")).status_code == 400
