"""Wire schemas of one user turn: what the simulated customer is told (`UserTurnBody`) and what comes back (`UserTurnReply`).

Refuses the agent's private side: an agent message here is text alone, without tool calls and without reasoning.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from services.common.wire.rollouts import Wire


class UserToolCall(Wire):
    """A call of one of the user's own tools. The runner executes it, the user simulator never does."""

    id: str
    name: str
    arguments: dict[str, Any] = {}


class UserSideMessage(Wire):
    """A message as the user sees the conversation: ``assistant`` is the agent's text, ``tool`` a result of the user's own tool."""

    role: Literal["assistant", "user", "tool"]
    content: str | None = None
    tool_calls: list[UserToolCall] = []
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _shape_fits_role(self) -> "UserSideMessage":
        if self.tool_calls and self.role != "user":
            raise ValueError("tool_calls: only the user's own calls belong into the user's view")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id: set it on tool messages and on no others")
        return self


class Scenario(Wire):
    """Who the user is and what they want."""

    text: str
    """The whole scenario as prose, for a prompt."""
    domain: str = ""
    persona: str = ""
    reason_for_call: str = ""
    known_info: str = ""
    unknown_info: str = ""
    task_instructions: str = ""
    """How to behave; the whole of the instructions where a task has them in one piece."""


class UserTurnBody(Wire):
    """POST /v1/turns. Everything the turn depends on: the service keeps nothing between turns."""

    scenario: Scenario
    guidelines: str = ""
    """The general part of the system prompt, which comes with the benchmark's data."""
    tools: list[dict[str, Any]] = []
    """OpenAI schemas of the user's tools."""
    messages: list[UserSideMessage] = Field(min_length=1)
    seed: int = 0


class Fault(StrEnum):
    """What was wrong with a user turn."""

    OK = "ok"
    EMPTY = "empty"
    """Neither text nor a tool call, also after resampling."""
    ROLE_FLIP = "role_flip"
    """The user speaks as the agent."""
    LEAKED_INSTRUCTIONS = "leaked_instructions"
    """The user quotes its own instructions."""
    PREMATURE_STOP = "premature_stop"
    """The user ends the conversation before the agent could do what it was asked for."""
    OUT_OF_PROTOCOL = "out_of_protocol"
    """Text and tool calls at once, an unknown tool, arguments that are no JSON object, or a mistyped stop token."""
    BACKEND_ERROR = "backend_error"
    """The model behind the user did not answer."""


class UserTurnReply(Wire):
    """Text, or tool calls, or a stop (text with a stop token). Neither where ``fault`` is empty or backend_error."""

    content: str | None = None
    tool_calls: list[UserToolCall] = []
    stop: Literal["stop", "transfer", "out_of_scope"] | None = None
    """Which token ended the conversation."""
    fault: Fault = Fault.OK
    detail: str = ""
    """About the fault, for people."""
    attempts: int = 1
    """Turns that were sampled; 2 where the first one had a fault."""


class FaultsReply(Wire):
    """GET /v1/faults: what this process has answered since it started."""

    turns: int
    counts: dict[Fault, int]
    """Turns by the label they were answered with."""
    rates: dict[Fault, float]
    """The same as shares of all turns; empty before the first."""
    first_samples: dict[Fault, int]
    """Labels of first samples: how the model does without the resample."""
    resampled: int
    retries: int
    """Requests to the model that were sent again because they failed."""
