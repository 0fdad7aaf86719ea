"""Owns talking to `user_simulator`: the scenario it plays and one turn at a time. Its tool calls come back to be executed here.

What is the same in every turn of an episode, and every message of the history, is encoded once. Refuses to pass on a turn that is none:
without text and tool calls the episode failed, and the user is at fault.
"""

import json
from textwrap import indent
from typing import Any

import orjson

from services.agent_runner.conversation.messages import Json, Message, ToolCall
from services.agent_runner.conversation.seeds import call_seed
from services.agent_runner.domains import DomainBackend, TaskSpec
from services.common.http import ServiceClient
from services.common.wire.users import Fault, Scenario, UserTurnReply

INSTRUCTION_PARTS = (
    ("Reason for call", "reason_for_call"),
    ("Known info", "known_info"),
    ("Unknown info", "unknown_info"),
    ("Task instructions", "task_instructions"),
)


class UserFailed(Exception):
    """The simulated user gave no usable turn. ``fault`` is the label it came with."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(f"{fault.value}: {detail or 'no text and no tool call'}")
        self.fault = fault


class SimulatedUser:
    """The customer of one episode. `reply` raises `UserFailed`, or `RemoteError` where the service cannot be had."""

    def __init__(self, client: ServiceClient, backend: DomainBackend, task: TaskSpec, seed: int, timeout_s: float) -> None:
        self._client = client
        self._brief: dict[str, orjson.Fragment] = {
            "scenario": orjson.Fragment(scenario_of(task).model_dump_json()),
            "guidelines": orjson.Fragment(orjson.dumps(backend.user_guidelines(task))),
            "tools": orjson.Fragment(orjson.dumps(backend.user_tool_schemas(task))),
        }
        self._sent: list[tuple[Message, orjson.Fragment]] = []
        self._seed = seed
        self._timeout_s = timeout_s
        self._turns = 0

    async def reply(self, history: list[Message]) -> Message:
        """The next user message: text, or calls of the user's tools. ``note`` holds its fault label where it has one."""
        seed = call_seed(self._seed, "user", self._turns)
        self._turns += 1
        body = orjson.dumps({**self._brief, "messages": self._encoded(history), "seed": seed})
        raw = await self._client.request("POST", "/v1/turns", data=body, timeout_s=self._timeout_s, retry_s=self._timeout_s)
        return read_turn(raw)

    def _encoded(self, history: list[Message]) -> list[orjson.Fragment]:
        """The history in wire form; messages that were sent before, in their places, are not encoded again."""
        for number, message in enumerate(history):
            if number < len(self._sent) and self._sent[number][0] is message:
                continue
            self._sent[number:] = [(message, orjson.Fragment(for_user(message)))]
        return [fragment for _, fragment in self._sent[: len(history)]]


def read_turn(raw: bytes) -> Message:
    """A `UserTurnReply` as a message. Raises `UserFailed` where it is none."""
    reply = UserTurnReply.model_validate_json(raw)
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in reply.tool_calls)
    note = None if reply.fault is Fault.OK else {"fault": reply.fault.value}
    message = Message("user", reply.content, calls, note=note)
    if not calls and not message.has_text:
        raise UserFailed(reply.fault, reply.detail)
    return message


def for_user(message: Message) -> bytes:
    """A message as the user sees it, a `UserSideMessage` in JSON: without the agent's private side and without empty fields."""
    told: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    try:
        return orjson.dumps(told)
    except TypeError:
        # A model may write an integer of more than 64 bits.
        return json.dumps(told).encode()


def scenario_of(task: TaskSpec) -> Scenario:
    """What the user simulator is told about a task."""
    scenario = task.raw["user_scenario"]
    instructions = scenario["instructions"]
    told: dict[str, str | None] = {"task_instructions": instructions} if isinstance(instructions, str) else instructions
    return Scenario(
        text=scenario_text(scenario),
        domain=task.domain,
        persona=scenario.get("persona") or "",
        reason_for_call=told.get("reason_for_call") or "",
        known_info=told.get("known_info") or "",
        unknown_info=told.get("unknown_info") or "",
        task_instructions=told.get("task_instructions") or "",
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
