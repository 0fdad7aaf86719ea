"""An agent that is not ours, built with the OpenAI Agents SDK, works on a tau2 task through a session: its calls are captured."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from agents import Agent, FunctionTool, ModelSettings, OpenAIChatCompletionsModel, RunConfig, Runner
from openai import BadRequestError
from proxy_helpers import SessionClient, call_text, running_proxy

from services.agent_runner.conversation.messages import read_agent_message
from services.agent_runner.domains import DomainBackend, Session, TaskSpec, open_backend
from services.agent_runner.reward.evaluator import Outcome, evaluate
from services.common.wire.calls import CallRecord, decode_call, rows_of
from services.common.wire.rollouts import Kind, Sampling, Status, TaskRef, TaskStamp, Timings, Trajectory
from services.policy_proxy.prompts.rendering import Renderer

SAID = [
    call_text("get_users") + "<|im_end|>",
    call_text("create_task", user_id="user_1", title="Important Meeting") + "<|im_end|>",
    "I have created the task.<|im_end|>",
]


def tools_of(backend: DomainBackend, task: TaskSpec, world: Session) -> list[Any]:
    """The environment's tools as the SDK wants them."""

    def tool(schema: dict[str, Any]) -> FunctionTool:
        async def invoke(_context: object, arguments: str) -> str:
            return world.call(schema["name"], json.loads(arguments)).content

        return FunctionTool(schema["name"], schema["description"], schema["parameters"], invoke, strict_json_schema=False)

    return [tool(entry["function"]) for entry in backend.tool_schemas(task, solo=False)]


async def run_agent(session: SessionClient, backend: DomainBackend, task: TaskSpec, world: Session) -> Any:
    """The SDK's own loop: model call, tools, model call, …, final text."""
    settings = ModelSettings(temperature=1.0, parallel_tool_calls=True, store=False, tool_choice="auto", metadata={"run": "1"})
    async with session.async_openai(max_retries=0) as client:
        agent = Agent(
            name="clerk",
            instructions=backend.policy(task, solo=False),
            model=OpenAIChatCompletionsModel(model="policy", openai_client=client),
            model_settings=settings,
            tools=tools_of(backend, task, world),
        )
        return await Runner.run(agent, task.ticket or "", run_config=RunConfig(tracing_disabled=True), max_turns=5)


def captured(store_url: str, session_id: str) -> list[CallRecord]:
    stored = httpx.get(f"{store_url}/v1/sessions/{session_id}/calls").content
    return [decode_call(item) for item in msgspec.msgpack.decode(stored, type=list[bytes])]


async def test_the_agents_sdk_plays_a_task_and_its_tokens_are_captured(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    backend = open_backend("mock", "inspect_evals")
    task = backend.task("base", "create_task_1_with_env_assertions")
    world = backend.new_session(task, solo=False)
    with running_proxy(model_folder, renderer, tmp_path, gconfig={"max_tokens": 16384, "max_new_tokens": 512}) as proxy:
        proxy.start()
        proxy.says(*SAID)
        session = proxy.open()
        started = time.time()
        result = await run_agent(session, backend, task, world)
        assert result.final_output == "I have created the task."
        assert session.seal().json()["open_intents"] == []
        sent = [exchange.input_ids + exchange.output_ids for exchange in proxy.engine.exchanges]
    records = captured(store_url, session.session_id)
    assert [record.ordinal for record in records] == [0, 1, 2]
    # One path: what the SDK sends back extends the tokens of the call before, none is sent twice as new.
    assert [record.parent for record in records] == [None, records[0].call_id, records[1].call_id]
    assert [row.ids.tolist() for row in rows_of(records)] == sent
    said = [record.response["choices"][0]["message"] for record in records]
    reward = evaluate(backend, task, Outcome.of(world, [read_agent_message(message) for message in said]))
    assert reward.reward == 1.0, reward
    trajectory = Trajectory(
        episode_id="foreign-1",
        group_id="foreign-1",
        kind=Kind.EVAL,
        task=TaskRef(domain="mock", split="base", task_id=task.task_id, solo_mode=False),
        stamp=TaskStamp(source=backend.source, digest=task.digest),
        status=Status.SCORED,
        reward=reward.reward,
        reward_info=reward,
        termination_reason="agent_stop",
        messages=said,
        n_turns=len(said),
        session_id=session.session_id,
        policy_versions=[0],
        sampling=Sampling(),
        timings=Timings(started_at=started, total_s=time.time() - started),
    )
    async with httpx.AsyncClient(base_url=store_url) as http:
        put = await http.put("/v1/trajectories/foreign-1", json=trajectory.model_dump(mode="json"))
        assert put.json() == {"outcome": "stored"}
        assert (await http.get("/v1/trajectories/foreign-1")).json()["reward"] == 1.0


async def test_what_the_sdk_asks_for_and_cannot_have_is_named(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    with running_proxy(model_folder, renderer, tmp_path) as proxy:
        proxy.start()
        session = proxy.open()
        refusals = (
            (ModelSettings(presence_penalty=0.5), "presence_penalty"),
            (ModelSettings(tool_choice="required"), "tool_choice"),
            (ModelSettings(verbosity="low"), "verbosity"),
        )
        async with session.async_openai(max_retries=0) as client:
            model = OpenAIChatCompletionsModel(model="policy", openai_client=client)
            for settings, name in refusals:
                agent = Agent(name="clerk", instructions="", model=model, model_settings=settings)
                with pytest.raises(BadRequestError) as refused:
                    await Runner.run(agent, "hi", run_config=RunConfig(tracing_disabled=True), max_turns=1)
                assert refused.value.param == name
