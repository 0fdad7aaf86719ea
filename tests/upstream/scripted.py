"""What both sides of the comparison are made to say: scripted agents, one scripted user, one scripted judge.

A script never looks at the past except for the user's reaction to the last message it sees, so one mismatch does not cause the next.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.agent_runner.domains import STOP_TOOL, Action, TaskSpec

Json = dict[str, Any]
_ORDER = re.compile(r"<<(.*)>>", re.DOTALL)


@dataclass(frozen=True)
class Script:
    """One episode's script. The agent's last message is repeated once the script is used up."""

    agent: Sequence[Json]
    max_steps: int = 100
    max_errors: int = 10


def say(text: str | None) -> Json:
    """An agent's or user's text."""
    return {"role": "assistant", "content": text}


def call(*actions: tuple[str, Any], text: str | None = None) -> Json:
    """Tool calls, with text beside them where given. Arguments that are strings already are sent as they are."""
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [
            {
                "id": "",
                "type": "function",
                "function": {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)},
            }
            for name, arguments in actions
        ],
    }


def order(*actions: tuple[str, Json]) -> Json:
    """Asks the scripted user to call its tools, all in one message."""
    return say(f"Please do this on your side: <<{json.dumps({'calls': actions})}>>")


def close(text: str = "Goodbye.", token: str = "###STOP###") -> Json:
    """Makes the scripted user answer with a stop token."""
    return say(f"{text} <<{json.dumps({'say': token})}>>")


class Numbered:
    """Gives every tool call an id that is unique within the episode and the same on both sides."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._next = 0

    def __call__(self, message: Json) -> Json:
        """The message with ids."""
        calls = message.get("tool_calls")
        if not calls:
            return {key: value for key, value in message.items() if key != "tool_calls"}
        numbered = []
        for one in calls:
            self._next += 1
            numbered.append({**one, "id": f"{self._prefix}{self._next}"})
        return {**message, "tool_calls": numbered}


class ScriptedAgent:
    """Says what its script says."""

    def __init__(self, script: Script) -> None:
        self._lines = list(script.agent)
        self._numbered = Numbered("a")
        self._turn = 0

    def reply(self) -> Json:
        """The next assistant message in OpenAI form."""
        line = self._lines[min(self._turn, len(self._lines) - 1)]
        self._turn += 1
        return self._numbered(line)


class ScriptedUser:
    """Does what the agent orders, reports what its tools gave back, stops when told to."""

    def __init__(self) -> None:
        self._numbered = Numbered("u")

    def reply(self, last: Json) -> Json:
        """The next message; ``last`` is the last one that the user sees, by the roles of the conversation."""
        if last["role"] == "tool":
            return say(f"It says: {last['content'][:300]}")
        found = _ORDER.search(last["content"] or "")
        if found is None:
            return say("All right, go on.")
        told = json.loads(found[1])
        if "calls" in told:
            return self._numbered(call(*told["calls"], text=told.get("text")))
        return say(told["say"])


def judge(assertion: str) -> bool:
    """Whether the scripted judge finds a statement true: decided by the statement alone."""
    return zlib.crc32(assertion.encode()) % 2 == 0


# -- The scripts -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What a script is made from."""

    task: TaskSpec
    solo: bool
    tools: Sequence[Json]
    """Schemas of the agent's tools."""
    user_tools: Sequence[Json]
    values: dict[str, list[Any]]
    """Argument name -> values that reference actions of the domain use."""
    rng: random.Random


def _step(action: Action, solo: bool) -> Json:
    if action.requestor == "user" and not solo:
        return order((action.name, action.arguments))
    return call((action.name, action.arguments))


def _closing(setting: Setting, token: str = "###STOP###") -> list[Json]:
    if setting.solo:
        return [call((STOP_TOOL, {}))]
    return [close("In short: " + "; ".join(setting.task.communicate_info), token)]


def _oracle(setting: Setting) -> list[Json]:
    return [_step(action, setting.solo) for action in setting.task.actions]


def oracle(setting: Setting) -> Script:
    """The reference actions, then a summary of all that must be told."""
    return Script([*_oracle(setting), *_closing(setting)])


def skips(setting: Setting) -> Script:
    """The reference actions without one of them."""
    steps = _oracle(setting)
    if steps:
        steps.pop(setting.rng.randrange(len(steps)))
    return Script([*steps, *_closing(setting)])


def nothing(setting: Setting) -> Script:
    """One closing line."""
    return Script(_closing(setting) if setting.solo else [close("I cannot help you.")])


def transfers(setting: Setting) -> Script:
    """Hands over to a human at once."""
    transfer = call(("transfer_to_human_agents", {"summary": "The user needs help."}))
    return Script([transfer, *_closing(setting, "###TRANSFER###")])


def bundles(setting: Setting) -> Script:
    """Up to three reference actions a message, with text beside the calls, and text that nobody reads."""
    steps: list[Json] = []
    batch: list[tuple[str, Json]] = []
    for action in setting.task.actions:
        if action.requestor == "user" and not setting.solo:
            if batch:
                steps.append(call(*batch, text="One moment, <<not an order."))
            batch = []
            steps.append(order((action.name, action.arguments), (action.name, action.arguments)))
            continue
        batch.append((action.name, action.arguments))
        if len(batch) == 3:
            steps.append(call(*batch, text=""))
            batch = []
    if batch:
        steps.append(call(*batch, text="Let me look that up. 1,000 and 2"))
    if not setting.solo:
        steps.append(say("Anything else?"))
    return Script([*steps, *_closing(setting)])


def _value(setting: Setting, name: str) -> Any:
    pool = [*setting.values.get(name, []), *ODD_VALUES]
    return setting.rng.choice(pool)


ODD_VALUES: list[Any] = [None, "", 0, -1, 2.5, True, "nonsense", [], {}, ["x"], {"a": 1}, "L1002", "555-123-2002"]
ODD_CALLS: list[tuple[str, Json]] = [
    ("no_such_tool", {}),
    ("", {}),
    ("get_user_details", {"tool_name": "x"}),
    ("transfer_to_human_agents", {"requestor": "user", "summary": "x"}),
    ("transfer_to_human_agents", {"self": 1}),
    ("db", {}),
    ("use_tool", {"tool_name": "calculate"}),
    ("_get_user", {"user_id": "x"}),
    ("get_db_hash", {}),
    ("calculate", {"expression": "2 + 2 * (3 - 1.5) / 7"}),
    ("calculate", {"expression": "1 / 0"}),
    ("calculate", {"expression": "2 +"}),
    ("calculate", {"expression": "__import__('os')"}),
]


def _random_call(setting: Setting, schemas: Sequence[Json]) -> tuple[str, Json]:
    rng = setting.rng
    if not schemas or rng.random() < 0.15:
        return rng.choice(ODD_CALLS)
    function = rng.choice(schemas)["function"]
    parameters = function["parameters"].get("properties", {})
    arguments = {name: _value(setting, name) for name in parameters if rng.random() < 0.93}
    if rng.random() < 0.05:
        arguments["unknown_argument"] = 1
    return function["name"], arguments


def _random_step(setting: Setting) -> Json:
    rng = setting.rng
    if not setting.solo and setting.user_tools and rng.random() < 0.35:
        return order(*(_random_call(setting, setting.user_tools) for _ in range(rng.choice((1, 1, 2)))))
    if not setting.solo and rng.random() < 0.1:
        return say("###STOP### is just text when I say it.")
    return call(*(_random_call(setting, setting.tools) for _ in range(rng.choice((1, 1, 1, 2, 4)))))


def noise(setting: Setting) -> Script:
    """Reference actions and random calls (valid, invalid, unknown) in any order."""
    steps = _oracle(setting)
    for _ in range(8):
        steps.insert(setting.rng.randrange(len(steps) + 1), _random_step(setting))
    steps = [step for step in steps if not _calls(step, STOP_TOOL)]
    return Script([*steps, *_closing(setting, "###OUT-OF-SCOPE###")], max_errors=setting.rng.choice((3, 10, 50)))


def _calls(step: Json, name: str) -> bool:
    return any(one["function"]["name"] == name for one in step.get("tool_calls", ()))


def wanders(setting: Setting) -> Script:
    """Random calls only, and it never closes: the episode ends by its limits."""
    steps = [_random_step(setting) for _ in range(40)]
    return Script([step for step in steps if not _calls(step, STOP_TOOL)], max_steps=setting.rng.randrange(5, 60), max_errors=12)


def edges(setting: Setting) -> Script:
    """The oracle with `max_steps` around the very step on which it closes."""
    steps = [*_oracle(setting), *_closing(setting)]
    # A normal step of the oracle is two steps of the protocol, and a user's action four; the greeting is answered first.
    length = sum(4 if "<<" in (step["content"] or "") else 2 for step in steps) + (0 if setting.solo else 1)
    return Script(steps, max_steps=max(1, length + setting.rng.choice((-3, -2, -1, 0, 1))))


def breaks(setting: Setting) -> Script:
    """Reference actions, then something that upstream cannot process: a policy failure."""
    faults = [*MALFORMED, *(SOLO_MALFORMED if setting.solo else ())]
    steps = _oracle(setting)
    steps.insert(setting.rng.randrange(len(steps) + 1), setting.rng.choice(faults))
    return Script([*steps, *_closing(setting)])


MALFORMED: list[Json] = [
    say(None),
    say(""),
    say("  \n"),
    call(("calculate", '{"expression": ')),
    call(("calculate", "[1]")),
    call(("calculate", "null")),
    call(("calculate", '"text"')),
    call(("calculate", "")),
    call(("get_user_details", "not json"), text="with text"),
]
SOLO_MALFORMED: list[Json] = [
    say("I would rather talk."),
    say("###STOP###"),
    call(("transfer_to_human_agents", {"summary": "x"}), text="###STOP###"),
]


def stops_oddly(setting: Setting) -> Script:
    """Stop tokens where they do not count, and after them whatever still comes."""
    steps = _oracle(setting)
    if setting.solo:
        odd = call((STOP_TOOL, {"why": "extra"}), ("transfer_to_human_agents", {"summary": "discarded"}), text="Done.")
        return Script([*steps[: len(steps) // 2], odd, *steps])
    calls = [_random_call(setting, setting.user_tools)] if setting.user_tools else [("no_such_tool", {})]
    beside = say(f"Do: <<{json.dumps({'calls': calls, 'text': '###STOP### beside a call is no stop'})}>>")
    bye = close("Bye.", "Thanks, bye! ###TRANSFER### ###STOP###")
    return Script([say("###STOP###"), *steps, beside, bye, call(("calculate", {"expression": "1"}))])


SCRIPTS: dict[str, Callable[[Setting], Script]] = {
    one.__name__: one for one in (oracle, skips, nothing, transfers, bundles, noise, wanders, edges, breaks, stops_oddly)
}
