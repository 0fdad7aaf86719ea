"""Owns what every call of an episode begins with: the agent's system prompt, equal to upstream tau2's `LLMAgent` and `LLMSoloAgent` to the
character, and the tools.

The wording is part of the benchmark: another wording is another task. Both are encoded once per task and shared between its episodes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

from services.agent_runner.conversation.thinking import with_thinking_tool
from services.agent_runner.domains import STOP_TOOL, DomainBackend, TaskSpec

AGENT_INSTRUCTION = """\
You are a customer service agent that helps the user according to the <policy> provided below.
In each turn you can either:
- Send a message to the user.
- Make a tool call.
You cannot do both at the same time.

Try to be helpful and always follow the policy. Always make sure you generate valid JSON only."""

SOLO_INSTRUCTION = f"""\
You are a customer service agent that helps the user according to the <policy> provided below.
You will be provided with a ticket that contains the user's request.
You will need to plan and call the appropriate tools to solve the ticket.

You cannot communicate with the user, only make tool calls.
Stop when you consider that you have solved the ticket.
To do so, send a message containing a single tool call to the `{STOP_TOOL}` tool. Do not include any other tool calls in this last message.

Always follow the policy. Always make sure you generate valid JSON only."""


def system_prompt(policy: str, ticket: str | None) -> str:
    """The agent's system message; with a ticket that of a solo agent."""
    instruction = AGENT_INSTRUCTION if ticket is None else SOLO_INSTRUCTION
    prompt = f"<instructions>\n{instruction}\n</instructions>\n<policy>\n{policy}\n</policy>"
    return prompt if ticket is None else f"{prompt}\n<ticket>\n{ticket}\n</ticket>"


def agent_tools(backend: DomainBackend, task: TaskSpec, *, solo: bool, thinking: bool) -> list[dict[str, Any]]:
    """The schemas of the agent's tools, with the thinking tool behind the domain's own where it is switched on."""
    schemas = backend.tool_schemas(task, solo=solo)
    if not thinking:
        return schemas
    own = len(backend.tool_schemas(task, solo=False)) if solo else len(schemas)
    return with_thinking_tool(schemas, own)


@dataclass(frozen=True, slots=True)
class Opening:
    """The constant part of an agent's calls, encoded."""

    system: orjson.Fragment
    tools: orjson.Fragment


class Openings:
    """Openings of the tasks played last: about 50 kB each, most of it shared where the tools are."""

    def __init__(self, *, thinking: bool, remembered: int = 512) -> None:
        self._thinking = thinking
        self._remembered = remembered
        self._known: OrderedDict[tuple[str, str, str, bool], Opening] = OrderedDict()
        self._tools: dict[bytes, orjson.Fragment] = {}

    def of(self, backend: DomainBackend, task: TaskSpec, *, solo: bool) -> Opening:
        """The opening of one task."""
        key = (backend.source, task.domain, task.digest, solo)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        opening = self._encoded(backend, task, solo=solo)
        self._known[key] = opening
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return opening

    def _encoded(self, backend: DomainBackend, task: TaskSpec, *, solo: bool) -> Opening:
        prompt = system_prompt(backend.policy(task, solo=solo), task.ticket if solo else None)
        tools = orjson.dumps(agent_tools(backend, task, solo=solo, thinking=self._thinking))
        if tools not in self._tools and len(self._tools) >= self._remembered:
            self._tools.clear()
        shared = self._tools.setdefault(tools, orjson.Fragment(tools))
        return Opening(orjson.Fragment(orjson.dumps({"role": "system", "content": prompt})), shared)
