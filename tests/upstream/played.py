"""One played episode in a form that both sides can be brought into, and the comparison of two of them."""

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class Played:
    """An episode as one side played it."""

    messages: list[Json] = field(default_factory=list)
    """``role, content, calls [[id, name, arguments]], answers, requestor, error``, where they apply."""
    agent_saw: list[list[Json]] = field(default_factory=list)
    """Per agent turn, the chat it was given, system message first."""
    user_saw: list[list[Json]] = field(default_factory=list)
    """Per user turn, the chat a model behind it would be given, system message first."""
    termination: str | None = None
    reward: float | None = None
    breakdown: dict[str, float] = field(default_factory=dict)
    checks: dict[str, list[bool]] = field(default_factory=dict)
    """Reward type -> verdicts in the order of the task's criteria, for the types in its basis."""
    end_state: tuple[str | None, str | None] | None = None
    """tau2's hashes of the agent's and the user's database that were graded; None where upstream looked at none."""
    raised: str = ""
    """Upstream: what its run or evaluation raised, where it did."""


def spoken(role: str, content: str | None, calls: list[list[Any]]) -> Json:
    """A message of the agent or the user."""
    return {"role": role, "content": content, "calls": calls}


def answered(content: str, call_id: str, requestor: str, error: bool) -> Json:
    """A result of a tool."""
    return {"role": "tool", "content": content, "answers": call_id, "requestor": requestor, "error": error}


def chat(message: Json) -> Json:
    """An OpenAI message with everything left out that does not matter to a model: how JSON is spaced, empty fields, the `name` of calls."""
    plain: Json = {"role": message["role"], "content": message.get("content") or ""}
    if message.get("tool_calls"):
        plain["calls"] = [[one["id"], one["function"]["name"], json.loads(one["function"]["arguments"])] for one in message["tool_calls"]]
    if message.get("tool_call_id") is not None:
        plain["answers"] = message["tool_call_id"]
    return plain


def differences(theirs: Played, ours: Played) -> list[str]:
    """What is not equal, in words; empty where the two agree. Where upstream raised, the documented deviation is what must hold."""
    if theirs.raised:
        return _deviation(theirs, ours)
    found = _sequences("message", theirs.messages, ours.messages)
    # A chat holds the messages before it, so it is worth a line only where those agree.
    found = found or _chats("agent", theirs.agent_saw, ours.agent_saw) + _chats("user", theirs.user_saw, ours.user_saw)
    for what in ("termination", "reward", "breakdown", "checks"):
        left, right = getattr(theirs, what), getattr(ours, what)
        if left != right:
            found.append(f"{what}: upstream {left!r}, ours {right!r}")
    if theirs.end_state not in (None, ours.end_state):
        found.append(f"end state: upstream {theirs.end_state}, ours {ours.end_state}")
    return found


def _deviation(theirs: Played, ours: Played) -> list[str]:
    """A policy failure that upstream raises (and books as an infrastructure error) is scored 0 here; until then all is equal."""
    found = _sequences("message", theirs.messages, ours.messages[: len(theirs.messages)])
    if ours.reward != 0.0:
        found.append(f"upstream raised {theirs.raised!r}, our reward is {ours.reward!r} instead of 0")
    if theirs.termination is None and ours.termination != "agent_error":
        found.append(f"upstream raised {theirs.raised!r} in its run, our termination is {ours.termination!r} instead of agent_error")
    if theirs.termination is not None and ours.termination not in (theirs.termination, "agent_error"):
        found.append(
            f"upstream raised {theirs.raised!r} in its evaluation after {theirs.termination}, our termination is {ours.termination!r}"
        )
    return found


def _sequences(what: str, theirs: list[Any], ours: list[Any]) -> list[str]:
    for index, (left, right) in enumerate(zip(theirs, ours, strict=False)):
        if left != right:
            return [f"{what} {index}: {_apart(left, right)}"]
    return [] if len(theirs) == len(ours) else [f"{len(theirs)} × {what} upstream, {len(ours)} ours"]


def _chats(who: str, theirs: list[list[Json]], ours: list[list[Json]]) -> list[str]:
    for turn, (left, right) in enumerate(zip(theirs, ours, strict=False)):
        if found := _sequences(f"what the {who} saw on turn {turn}, message", left, right):
            return found
    return [] if len(theirs) == len(ours) else [f"the {who} had {len(theirs)} turns upstream, {len(ours)} here"]


def _apart(theirs: Any, ours: Any) -> str:
    """Where two values begin to differ, with what stands around it."""
    left, right = json.dumps(theirs, default=str), json.dumps(ours, default=str)
    same = next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))
    start = max(0, same - 120)
    return f"upstream …{left[start : same + 200]}… ours …{right[start : same + 200]}…"
