"""Plays a script through upstream: its own agents, user simulator, orchestrator and evaluator; only the model behind them is the script."""

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from played import Json, Played, answered, chat, spoken
from scripted import Script, ScriptedAgent, ScriptedUser, judge

from services.agent_runner.domains.banking_retrieval import DEFAULT_VARIANT
from services.agent_runner.domains.tau2 import upstream

llm_agent = upstream("agent.llm_agent")
user_simulator = upstream("user.user_simulator")
nl_assertions = upstream("evaluator.evaluator_nl_assertions")
message_types = upstream("data_model.message")
llm_utils = upstream("utils.llm_utils")
Orchestrator = upstream("orchestrator.orchestrator").Orchestrator
registry = upstream("registry").registry
evaluator = upstream("evaluator.evaluator")
Task = upstream("data_model.tasks").Task
telecom_user_tools = upstream("domains.telecom.user_tools").TelecomUserTools
VPN_DETAILS = telecom_user_tools.default_vpn_details.model_copy(deep=True)


def _remember_parsed() -> None:
    """Keeps what upstream parses anew for every environment (schemas of tools, files), most of its time. No behaviour depends on it."""
    toolkit, database = upstream("environment.toolkit"), upstream("environment.db")
    as_tool, known = toolkit.as_tool, {}

    def remembered(function: Any) -> Any:
        key = getattr(function, "__func__", function)
        if key not in known:
            known[key] = as_tool(function)
        return known[key]

    toolkit.as_tool = remembered
    database.load_file = cache(database.load_file)
    banking = upstream("domains.banking_knowledge.environment")
    # Upstream leaves the order of documents to the file system; ours is that of the files' names.
    documents = sorted(banking.get_knowledge_base().documents.items(), key=lambda item: _file_names()[item[0]])
    knowledge = banking.KnowledgeBase(documents=dict(documents))
    banking.get_knowledge_base = lambda: knowledge


@cache
def _file_names() -> dict[str, str]:
    files = Path(upstream("domains.banking_knowledge.utils").KNOWLEDGE_DOCUMENTS_DIR).glob("*.json")
    return {json.loads(file.read_bytes())["id"]: file.name for file in files}


_remember_parsed()


class Graded:
    """Stands where upstream's evaluator asks for a domain's environment, and keeps what it found out about them."""

    def __init__(self, domain: str) -> None:
        self._construct = registry.get_env_constructor(domain)
        self._made: list[Any] = []

    def __call__(self, **kwargs: Any) -> Any:
        environment = self._construct(**kwargs)
        environment.get_db_hash = cache(environment.get_db_hash)
        environment.get_user_db_hash = cache(environment.get_user_db_hash)
        self._made.append(environment)
        return environment

    def end_state(self) -> tuple[str | None, str | None] | None:
        """The hashes of the replayed conversation; None where the evaluator did not replay it."""
        # The first environment is made for its list of tools, then the conversation is replayed, then the reference actions.
        return (self._made[1].get_db_hash(), self._made[1].get_user_db_hash()) if len(self._made) == 3 else None


class Model:
    """Stands where upstream calls a model: tells the script's next line, keeps what upstream showed."""

    def __init__(self, script: Script, played: Played) -> None:
        self._agent = ScriptedAgent(script)
        self._user = ScriptedUser()
        self._played = played

    def generate(self, *, messages: list[Any], call_name: str, tools: list[Any] | None = None, **_: Any) -> Any:
        """Upstream's `generate`, with its reading of the answer."""
        shown = [chat(message) for message in llm_utils.to_litellm_messages(messages)]
        if call_name == "nl_assertions_eval":
            return _judge(messages[-1].content)
        if call_name == "user_simulator_response":
            self._played.user_saw.append(shown)
            return _read(self._user.reply(_unflipped(shown[-1])))
        self._played.agent_saw.append(shown)
        return _read(self._agent.reply())


def _judge(prompt: str) -> Any:
    # The list stands at the end of upstream's question as Python prints it.
    stated = ast.literal_eval(prompt.rpartition("expectedOutcomes:")[2].strip())
    results = [{"expectedOutcome": one, "reasoning": "scripted", "metExpectation": judge(one)} for one in stated]
    return message_types.AssistantMessage(role="assistant", content=json.dumps({"results": results}))


@contextmanager
def scripted_judge() -> Iterator[None]:
    """Puts the scripted judge in the place of upstream's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nl_assertions, "generate", lambda *, messages, **_: _judge(messages[-1].content))
        yield


def _unflipped(shown: Json) -> Json:
    return {**shown, "role": {"user": "assistant", "assistant": "user"}.get(shown["role"], shown["role"])}


def _read(raw: Json) -> Any:
    calls = [
        message_types.ToolCall(id=one["id"], name=one["function"]["name"], arguments=json.loads(one["function"]["arguments"]))
        for one in raw.get("tool_calls") or []
    ]
    return message_types.AssistantMessage(role="assistant", content=raw.get("content"), tool_calls=calls or None)


@contextmanager
def _scripted(model: Model, graded: Graded) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "get_env_constructor", lambda _domain: graded)
        for module in (llm_agent, user_simulator, nl_assertions):
            patched.setattr(module, "generate", model.generate)
        yield


def env_kwargs(domain: str, task: Any, retrieval: str = DEFAULT_VARIANT) -> dict[str, Any]:
    """What upstream's runner passes to the environment's constructor."""
    if domain != "banking_knowledge":
        return {}
    actions = (task.evaluation_criteria.actions if task.evaluation_criteria else None) or []
    names = {action.arguments.get("agent_tool_name") for action in actions if action.name == "call_discoverable_agent_tool"}
    return {"retrieval_variant": retrieval, "task": task, "read_log_allowlist": names - {None}}


def environment_of(domain: str, task: Any, *, solo: bool = False, retrieval: str = DEFAULT_VARIANT) -> Any:
    """Upstream's environment for a task, as its runner builds it; the task's initial state is not brought about yet."""
    # Upstream keeps these in a class, where a VPN broken once would stay broken for all later episodes of the process.
    telecom_user_tools.default_vpn_details = VPN_DETAILS.model_copy(deep=True)
    chosen = {"solo_mode": True} if solo else {}
    return registry.get_env_constructor(domain)(**env_kwargs(domain, task, retrieval), **chosen)


def orchestrator_of(domain: str, task: Any, script: Script, solo: bool) -> Any:
    """Upstream's orchestrator with upstream's own participants, as its runner builds them."""
    environment = environment_of(domain, task, solo=solo)
    tools = environment.get_tools()
    try:
        user_tools = environment.get_user_tools(include=task.user_tools) or None
    except ValueError:
        user_tools = None
    if solo:
        agent = llm_agent.LLMSoloAgent(tools + environment.get_user_tools(), environment.get_policy(), task, llm="scripted", llm_args={})
        user = user_simulator.DummyUser()
    else:
        agent = llm_agent.LLMAgent(tools, environment.get_policy(), llm="scripted", llm_args={})
        user = user_simulator.UserSimulator(llm="scripted", instructions=str(task.user_scenario), tools=user_tools, llm_args={})
    return Orchestrator(
        domain=domain,
        agent=agent,
        user=user,
        environment=environment,
        task=task,
        max_steps=script.max_steps,
        max_errors=script.max_errors,
        solo_mode=solo,
    )


def play(domain: str, raw: Json, script: Script, *, solo: bool) -> Played:
    """Runs and evaluates one episode. What upstream raises is kept, not raised."""
    task = Task.model_validate(raw)
    played = Played()
    model = Model(script, played)
    orchestrator = orchestrator_of(domain, task, script, solo)
    graded = Graded(domain)
    with _scripted(model, graded):
        try:
            simulation = orchestrator.run()
            played.messages = [_plain(message) for message in simulation.messages]
            played.termination = simulation.termination_reason.value
            _keep_reward(
                played,
                evaluator.evaluate_simulation(
                    simulation=simulation,
                    task=task,
                    evaluation_type=evaluator.EvaluationType.ALL,
                    solo_mode=solo,
                    domain=domain,
                    env_kwargs=env_kwargs(domain, task),
                ),
            )
            played.end_state = graded.end_state()
        except Exception as error:  # noqa: BLE001 - whatever upstream raises is what is compared
            played.raised = f"{type(error).__name__}: {error}"[:300]
            played.messages = [_plain(message) for message in orchestrator.trajectory]
    return played


def _plain(message: Any) -> Json:
    if message.role == "tool":
        return answered(message.content, message.id, message.requestor, message.error)
    return spoken(message.role, message.content, [[one.id, one.name, one.arguments] for one in message.tool_calls or []])


def _keep_reward(played: Played, info: Any) -> None:
    played.reward = info.reward
    played.breakdown = {kind.value: value for kind, value in (info.reward_breakdown or {}).items()}
    if info.db_check and info.reward_basis and "DB" in info.reward_basis:
        # Upstream leaves the factor out where a task names no end state; it is 1 then.
        played.breakdown.setdefault("DB", info.db_check.db_reward)
    found = {
        "DB": [info.db_check.db_match] if info.db_check else [],
        "ENV_ASSERTION": [check.met for check in info.env_assertions or []],
        "ACTION": [check.action_match for check in info.action_checks or []],
        "NL_ASSERTION": [check.met for check in info.nl_assertions or []],
        "COMMUNICATE": [check.met for check in info.communicate_checks or []],
    }
    played.checks = {kind: found[kind] for kind in played.breakdown}
