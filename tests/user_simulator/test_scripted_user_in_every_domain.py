"""Every task of every domain can be played to its end with the scripted user: an agent that asks for the reference actions gets them."""

import json
import re
from typing import Any

import pytest
from user_fakes import GREETING, Json, agent, ran, tasks, user

from services.agent_runner.conversation.user import scenario_of
from services.agent_runner.domains import TaskSpec
from services.common.wire.users import Fault, UserSideMessage, UserTurnBody
from services.user_simulator.faults import Turn, judge
from services.user_simulator.first_person import first_person
from services.user_simulator.scenario import DEFAULT_OPENING, script_of
from services.user_simulator.scripted import scripted_turn

DOMAINS = ("airline", "retail", "telecom", "mock", "banking_knowledge")
PERSON = re.compile(r"\byou(?:rs?|rself)? (?:are|were|want|need|name|have)\b", re.IGNORECASE)


def played(domain: str, raw: Json) -> tuple[list[tuple[str, Json]], str | None, list[str]]:
    """The user's calls, how it hung up, and its faults, with an agent that asks for the user's reference actions and says goodbye."""
    criteria: Json = raw.get("evaluation_criteria") or {}
    wanted = [action for action in criteria.get("actions") or () if action.get("requestor") == "user"]
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in {action["name"] for action in wanted}]
    told = ". ".join(criteria.get("communicate_info") or ())
    lines = [written(number, action) for number, action in enumerate(wanted)]
    lines.append(f"{told} Everything is done, your issue is resolved. Goodbye!")
    scenario, history = scenario_of(TaskSpec(domain, raw)), [GREETING]
    calls: list[tuple[str, Json]] = []
    faults: list[str] = []
    for line in (None, *lines):
        history.extend([agent(line)] if line else [])
        while True:
            reply = scripted_turn(UserTurnBody(scenario=scenario, tools=tools, messages=history, seed=len(history)))
            verdict = judge(Turn(reply.content, reply.tool_calls, history, frozenset(action["name"] for action in wanted), scenario.text))
            faults.extend([] if verdict[0] is Fault.OK else [f"{verdict}: {reply.content}"])
            if not reply.tool_calls:
                break
            calls.append((reply.tool_calls[0].name, reply.tool_calls[0].arguments))
            history.extend(ran(calls[-1][0], "Success.", len(calls) - 1, **calls[-1][1]))
        if reply.stop:
            return calls, reply.stop, faults
        history.append(user(reply.content or ""))
    return calls, None, faults


def written(number: int, action: Json) -> str:
    """The request in one of the forms that agents use, in turns."""
    name, arguments = action["name"], action["arguments"]
    pairs = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"Please run {name}({pairs}) now." if number % 2 else f"Please run: {name} {json.dumps(arguments)}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_reference_actions_of_the_user_are_made_and_the_conversation_ends(domain: str):
    every = tasks(domain)[:: 10 if domain == "telecom" else 1]
    for raw in every:
        wanted = [
            (action["name"], action["arguments"])
            for action in (raw.get("evaluation_criteria") or {}).get("actions") or ()
            if action.get("requestor") == "user"
        ]
        calls, stop, faults = played(domain, raw)
        assert calls == wanted, raw["id"]
        assert (stop, faults) == ("stop", []), raw["id"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_scenario_becomes_a_script_in_the_first_person(domain: str):
    for raw in tasks(domain):
        script = script_of(scenario_of(TaskSpec(domain, raw)))
        texts = [script.opening, *(line.text for line in (*script.facts, *script.unknown) if '"' not in line.text)]
        assert len(script.opening.split()) >= 4, raw["id"]
        assert script.opening != DEFAULT_OPENING, raw["id"]
        wrong = [text for text in texts if domain in ("airline", "retail", "telecom", "mock") and PERSON.search(text)]
        assert not wrong, raw["id"]
        assert not [text for text in texts if "###" in text or "**" in text], raw["id"]


@pytest.mark.parametrize("domain", ["airline", "retail"])
def test_who_the_user_is_can_be_found_out(domain: str):
    for raw in tasks(domain):
        body = UserTurnBody(
            scenario=scenario_of(TaskSpec(domain, raw)),
            messages=[GREETING, user("hi"), UserSideMessage(role="assistant", content="Please give me your name, email and user id.")],
        )
        known = raw["user_scenario"]["instructions"]["known_info"]
        said = scripted_turn(body).content or ""
        assert shares_a_name_or_id(said, known), raw["id"]


def shares_a_name_or_id(said: str, known: str) -> bool:
    marks = set(re.findall(r"[A-Z][a-z]+|\S+_\S+|\S+@\S+", known))
    return any(mark in said for mark in marks)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("You are Emma Kim. Your user id is emma_kim_9957.", "I am Emma Kim. My user id is emma_kim_9957."),
        ("You name is Ivan and you are sad.", "My name is Ivan and I am sad."),
        ("It was assigned to you.", "It was assigned to me."),
        ("You want the agent to tell you the price for you and yours.", "I want the agent to tell me the price for me and mine."),
        ("You're sure that you've paid, but you weren't told.", "I'm sure that I've paid, but I wasn't told."),
        ('You say "Are you there?" to yourself.', 'I say "Are you there?" to myself.'),
        ("They charged you twice, and you don't know why.", "They charged me twice, and I don't know why."),
        ("If asked, you are ok with what you were offered.", "If asked, I am ok with what I was offered."),
    ],
)
def test_the_second_person_becomes_the_first(text: str, said: str):
    assert first_person(text) == said


def test_stage_directions_are_not_said():
    raw: Any = {
        "id": "x",
        "user_scenario": {
            "instructions": {
                "domain": "retail",
                "reason_for_call": "You want to cancel the grill, but if the agent asks you to confirm, you regret it. Make sure you "
                "mention the grill first. You want to send it to your son (you do not want to reveal his name).",
                "known_info": "You are Mei.",
                "task_instructions": "You are polite, optimistic. You want to ask the agent to hurry.",
            }
        },
    }
    script = script_of(scenario_of(TaskSpec("retail", raw)))
    assert script.opening == "I want to cancel the grill. I want to send it to my son."
    assert [line.text for line in script.lines][2:] == ["I want to please hurry."]
