"""Each label, what earns it, and what must not: the words of real scenarios, quotations, and reported speech."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_fakes import GREETING, TOOL_NAMES, agent, ran, tasks, user

from services.common.wire.users import Fault, UserSideMessage, UserToolCall
from services.user_simulator.faults import Turn, judge
from services.user_simulator.first_person import first_person
from services.user_simulator.protocol import STOP_TOKENS

SCENARIO = (
    "Instructions:\n\tDomain: telecom\nKnown info:\n\tYou are John Smith with phone number 555-123-2002.\nTask instructions:\n\t"
    "You will consider the issue resolved when the status bar shows that you have signal."
)
GUIDELINES = (
    "# User Simulation Guidelines\n- Never make up or hallucinate information not provided in the scenario instructions.\n- Be brief."
)
TALK = [GREETING, user("My phone is broken."), agent("I will reset your line. Do you want me to proceed? (yes/no)")]


def label(text: str | None, *, history: list[UserSideMessage] | None = None, calls: tuple[UserToolCall, ...] = ()) -> Fault:
    history = TALK if history is None else history
    return judge(Turn(text, calls, history, frozenset(TOOL_NAMES), SCENARIO, GUIDELINES))[0]


def call(name: str = "toggle_data") -> UserToolCall:
    return UserToolCall(id="1", name=name)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, Fault.EMPTY),
        (" \n", Fault.EMPTY),
        ("Hello! How may I assist you today?", Fault.ROLE_FLIP),
        ("Is there anything else I can help you with?", Fault.ROLE_FLIP),
        ("Thank you for calling. I can look into it.", Fault.ROLE_FLIP),
        ("Thank you for contacting us about your phone.", Fault.ROLE_FLIP),
        ("I'd be happy to help you with your reservation.", Fault.ROLE_FLIP),
        ("Could you please provide your user ID?", Fault.ROLE_FLIP),
        ("I have successfully cancelled your reservation.", Fault.ROLE_FLIP),
        ("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.", Fault.ROLE_FLIP),
        ("Let me look up your account.", Fault.ROLE_FLIP),
        ("My task instructions say that I am angry.", Fault.LEAKED_INSTRUCTIONS),
        ("Persona: an impatient man", Fault.LEAKED_INSTRUCTIONS),
        ("As an AI language model, I have no phone.", Fault.LEAKED_INSTRUCTIONS),
        ("<scenario> I am John </scenario>", Fault.LEAKED_INSTRUCTIONS),
        ("You are John Smith with phone number 555-123-2002.", Fault.LEAKED_INSTRUCTIONS),
        ("Well, **you will consider the issue resolved when the status bar shows that you have signal**", Fault.LEAKED_INSTRUCTIONS),
        ("Never make up or hallucinate information not provided in the scenario instructions!", Fault.LEAKED_INSTRUCTIONS),
        ("Yes, please proceed. ###STOP###", Fault.PREMATURE_STOP),
        ("###TRANSFER###", Fault.PREMATURE_STOP),
        ("Thanks! ##STOP##", Fault.OUT_OF_PROTOCOL),
        ('<tool_call>\n{"name": "toggle_data", "arguments": {}}\n</tool_call>', Fault.OUT_OF_PROTOCOL),
        ('{"name": "toggle_data", "arguments": {}}', Fault.OUT_OF_PROTOCOL),
    ],
)
def test_a_fault_has_its_label(text: str | None, fault: Fault):
    assert label(text) is fault


@pytest.mark.parametrize(
    "text",
    [
        "I am John Smith, my number is 555-123-2002.",
        'Your colleague asked "How can I help you today?" and then hung up.',
        "The recording said thank you for calling us, and nothing happened.",
        "Thank you for calling me back.",
        "Thank you for contacting the airline for me.",
        "Is there anything else I can do on my phone?",
        "I'm happy to help if you need me to test something.",
        "Can you tell me your name and the order status?",
        "What are your reservation rules?",
        "Are you an AI? I want to talk to a human.",
        "The task is done, the instructions on your website were wrong.",
        "I am a customer service representative myself, so I know how hard it is.",
        "I had a mixup with my assistant.",
        "I cancelled my reservation myself.",
        "Nobody told me how I can help you with that.",
        "No, please don't. ###STOP###",
        "###OUT-OF-SCOPE###",
        "I will consider it resolved when the status bar shows that I have signal.",
        "Press # twice? ## nothing happens",
    ],
)
def test_a_customers_words_are_no_fault(text: str):
    assert label(text) is Fault.OK


def test_calls_are_judged_with_what_stands_beside_them():
    assert label(None, calls=(call(),)) is Fault.OK
    assert label("Sure!", calls=(call(),)) is Fault.OUT_OF_PROTOCOL
    assert label(None, calls=(call("fly"),)) is Fault.OUT_OF_PROTOCOL


@pytest.mark.parametrize(
    ("said", "answer", "fault"),
    [
        ("Hi! How can I help you today?", "Never mind. ###STOP###", Fault.PREMATURE_STOP),
        ("Your line works again. Is your issue resolved?", "Yes, thank you! ###STOP###", Fault.OK),
        ("Is there anything else I can help you with?", "No, that is all. ###STOP###", Fault.OK),
        ("Would you like me to cancel it?", "Yes, go ahead. ###STOP###", Fault.PREMATURE_STOP),
        ("Would you like me to cancel it?", "No, I'd rather keep it. ###STOP###", Fault.OK),
        ("Please hold, I will connect you to a specialist.", "###TRANSFER###", Fault.OK),
    ],
)
def test_a_stop_is_premature_only_where_work_is_left(said: str, answer: str, fault: Fault):
    first = said.startswith("Hi!")
    assert label(answer, history=[agent(said)] if first else [GREETING, user("hello"), agent(said)]) is fault


def test_a_stop_behind_the_users_own_tool_is_no_premature_stop():
    history = [*TALK, *ran("toggle_data", "Mobile Data is now ON.")]
    assert label("Yes, it works now, thanks! ###STOP###", history=history) is Fault.OK


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom", "mock", "banking_knowledge"])
def test_no_scenario_told_in_the_first_person_is_a_fault(domain: str):
    """Precision on the words that users of this benchmark really have to say: every sentence of every task."""
    wrong: set[tuple[str, str]] = set()
    texts = {part for task in tasks(domain) for part in told(task["user_scenario"]["instructions"])}
    for text in texts:
        verdict = judge(Turn(first_person(text), (), TALK, frozenset(), SCENARIO, GUIDELINES))
        if verdict[0] is not Fault.OK:
            wrong.add((verdict[1], text[:80]))
    assert not wrong


def told(instructions: object) -> list[str]:
    """What a user is given to say: fields, and the quotations of free text."""
    if isinstance(instructions, dict):
        return [text for key in ("reason_for_call", "known_info", "unknown_info") if (text := instructions.get(key))]
    assert isinstance(instructions, str)
    return [said for part in instructions.split('"')[1::2] if (said := part.replace("###STOP###", "").strip())]


@given(st.text(max_size=80), st.sampled_from([*STOP_TOKENS, ""]))
def test_judging_never_fails_and_depends_on_the_turn_alone(text: str, token: str):
    one = judge(Turn(text + token, (), TALK, frozenset(), SCENARIO, GUIDELINES))
    assert one == judge(Turn(text + token, (), TALK, frozenset(), SCENARIO, GUIDELINES))
    assert (one[0] is Fault.EMPTY) == (not (text + token).strip())
    assert bool(one[1]) == (one[0] is not Fault.OK)


@given(
    st.sampled_from(["How can I help you?", "I am transferring you now.", "Thank you for contacting us."]), st.text("abc .,", max_size=30)
)
def test_quotations_are_never_the_users_own_words(phrase: str, around: str):
    assert label(f'{around} "{phrase}" ok') is Fault.OK
    assert label(f"ok. {phrase}") is Fault.ROLE_FLIP
