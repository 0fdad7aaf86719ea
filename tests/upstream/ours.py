"""Plays a script through our turn protocol and evaluator on one of our back ends; only what the participants say is the script."""

import json

from played import Json, Played, answered, chat, spoken
from scripted import Script, ScriptedAgent, ScriptedUser, judge

from services.agent_runner.conversation.messages import Message, ToolCall, for_agent, for_record, read_history
from services.agent_runner.conversation.orchestrator import Tools, Trace, play
from services.agent_runner.conversation.prompts import system_prompt
from services.agent_runner.conversation.protocol import Conversation, Termination
from services.agent_runner.conversation.user import for_user, scenario_of
from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.reward.evaluator import Outcome, evaluate, judged, premature
from services.agent_runner.reward.judge import Judge
from services.common.wire.rollouts import RewardInfo
from services.common.wire.users import UserSideMessage, UserTurnBody
from services.user_simulator.prompt import prompt

STOPPED = (Termination.USER_STOP, Termination.AGENT_STOP)


class UserSaidNothing(Exception):
    """The scripted user's turn is none: an infrastructure failure on both sides."""


class Agent:
    """The scripted agent behind our agent interface."""

    def __init__(self, script: Script, system: str, played: Played) -> None:
        self._script = ScriptedAgent(script)
        self._system = {"role": "system", "content": system}
        self._played = played

    async def reply(self, history: list[Message]) -> Json:
        """The script's next line."""
        self._played.agent_saw.append([chat(self._system), *(chat(for_agent(message)) for message in history)])
        return self._script.reply()


class User:
    """The scripted user behind our user interface, shown what a model behind our user simulator would be shown."""

    def __init__(self, backend: DomainBackend, task: TaskSpec, played: Played) -> None:
        self._script = ScriptedUser()
        self._scenario = scenario_of(task)
        self._guidelines = backend.user_guidelines(task)
        self._tools = backend.user_tool_schemas(task)
        self._played = played

    async def reply(self, history: list[Message]) -> Message:
        """The script's reaction."""
        messages = [UserSideMessage.model_validate_json(for_user(message)) for message in history]
        body = UserTurnBody(scenario=self._scenario, guidelines=self._guidelines, tools=self._tools, messages=messages)
        self._played.user_saw.append([chat(message) for message in prompt(body)])
        raw = self._script.reply({"role": history[-1].role, "content": history[-1].content})
        calls = [one["function"] | {"id": one["id"]} for one in raw.get("tool_calls") or []]
        return Message("user", raw["content"], tuple(ToolCall(one["id"], one["name"], json.loads(one["arguments"])) for one in calls))


async def play_ours(backend: DomainBackend, task: TaskSpec, script: Script, *, solo: bool) -> tuple[Played, RewardInfo, list[Json]]:
    """Runs and evaluates one episode. Also returns its reward and its messages as a trajectory keeps them."""
    played = Played()
    history = [read_history(raw) for raw in task.message_history]
    conversation = Conversation(solo=solo, max_steps=script.max_steps, max_errors=script.max_errors, history=history)
    session = backend.new_session(task, solo=solo)
    agent = Agent(script, system_prompt(backend.policy(task, solo=solo), task.ticket if solo else None), played)
    user = None if solo else User(backend, task, played)
    await play(conversation, agent, user, Tools(session), Trace())
    assert conversation.termination is not None
    if conversation.termination in STOPPED:
        # Before the evaluation, because assertions may write.
        played.end_state = session.db_hashes()
        outcome = Outcome.of(session, conversation.messages)
        info = evaluate(backend, task, outcome, always_judge=True)
        if info.pending:
            info = judged(info, await _judge(task).decide(conversation.messages, task.nl_assertions))
    else:
        info = premature(task, conversation.termination.value)
    played.messages = [_plain(message) for message in conversation.messages]
    played.termination = conversation.termination.value
    played.reward = info.reward
    played.breakdown = dict(info.breakdown)
    played.checks = {kind: _verdicts(info, kind) for kind in info.breakdown}
    return played, info, [for_record(message) for message in conversation.messages]


def _judge(task: TaskSpec) -> Judge:
    async def complete(_messages: list[Json]) -> str:
        results = [{"expectedOutcome": one, "reasoning": "scripted", "metExpectation": judge(one)} for one in task.nl_assertions]
        return json.dumps({"results": results})

    return Judge("scripted", complete, timeout_s=10)


def _verdicts(info: RewardInfo, kind: str) -> list[bool]:
    passed = [check.passed for check in info.checks if check.kind == kind]
    return [all(passed)] if kind == "DB" else passed


def _plain(message: Message) -> Json:
    if message.role == "tool":
        return answered(message.content or "", message.tool_call_id or "", message.requestor, message.error)
    return spoken(message.role, message.content, [[one.id, one.name, one.arguments] for one in message.tool_calls])
