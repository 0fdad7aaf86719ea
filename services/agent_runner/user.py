"""Owns talking to `user_simulator`: the scenario it plays and one turn at a time. Its tool calls come back to be executed here.

Refuses to pass on a turn that is none: without text and tool calls the episode failed, and the user is at fault.
"""

from textwrap import indent
from typing import Any

from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.messages import Message, ToolCall, for_user
from services.agent_runner.seeds import call_seed
from services.common.http import ServiceClient
from services.common.wire.users import Fault, Scenario, UserTurnBody, UserTurnReply

INSTRUCTION_PARTS = (
    ("Reason for call", "reason_for_call"),
    ("Known info", "known_info"),
    ("Unknown info", "unknown_info"),
    ("Task instructions", "task_instructions"),
)


class UserFailed(Exception):
    """The simulated user gave no usable turn."""


class SimulatedUser:
    """The customer of one episode. `reply` raises `UserFailed`, or `RemoteError` where the service cannot be had."""

    def __init__(self, client: ServiceClient, backend: DomainBackend, task: TaskSpec, seed: int, timeout_s: float) -> None:
        self._client = client
        self._scenario = scenario_of(task)
        self._guidelines = backend.user_guidelines()
        self._tools = backend.user_tool_schemas()
        self._seed = seed
        self._timeout_s = timeout_s
        self._turns = 0

    async def reply(self, history: list[Message]) -> Message:
        """The next user message: text, or calls of the user's tools."""
        body = UserTurnBody(
            scenario=self._scenario,
            guidelines=self._guidelines,
            tools=self._tools,
            messages=[for_user(message) for message in history],
            seed=call_seed(self._seed, "user", self._turns),
        )
        self._turns += 1
        raw = await self._client.post("/v1/turns", body.model_dump(mode="json"), timeout_s=self._timeout_s, retry_s=self._timeout_s)
        reply = UserTurnReply.model_validate(raw)
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in reply.tool_calls)
        note = None if reply.fault is Fault.OK else {"fault": reply.fault.value}
        message = Message("user", reply.content, calls, note=note)
        if not calls and not message.has_text:
            raise UserFailed(f"{reply.fault.value}: {reply.detail or 'no text and no tool call'}")
        return message


def scenario_of(task: TaskSpec) -> Scenario:
    """What the user simulator is told about a task."""
    scenario = task.raw["user_scenario"]
    instructions = scenario["instructions"]
    told: dict[str, str | None] = {} if isinstance(instructions, str) else instructions
    return Scenario(
        text=scenario_text(scenario),
        domain=task.domain,
        reason_for_call=told.get("reason_for_call") or "",
        known_info=told.get("known_info") or "",
    )


def scenario_text(scenario: dict[str, Any]) -> str:
    """The scenario as upstream tau2 prints it (`str(UserScenario)`): it stands in the user simulator's system prompt."""
    persona, instructions = scenario.get("persona"), scenario["instructions"]
    text = instructions if isinstance(instructions, str) else _instructions_text(instructions)
    lines = [] if persona is None else ["Persona:", indent(persona, "\t")]
    return "\n".join([*lines, "Instructions:", indent(text, "\t")])


def _instructions_text(told: dict[str, Any]) -> str:
    lines = [f"Domain: {told['domain']}"]
    for title, key in INSTRUCTION_PARTS:
        if told.get(key) is not None:
            lines.append(f"{title}:\n{indent(told[key], chr(9))}")
    return "\n".join(lines)
