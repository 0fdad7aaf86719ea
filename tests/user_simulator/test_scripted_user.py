"""The scripted user: what it says and does follows from the conversation, its scenario and the seed alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_fakes import GREETING, SCENARIO, TOOL_NAMES, TOOLS, Json, agent, ran, turn, user

from services.common.wire.users import Fault, Scenario, UserSideMessage, UserTurnBody
from services.user_simulator.calls import written_calls
from services.user_simulator.requests import Confirm, Decide, Goodbye, Identify, RunTool, RunTools, Transferred, Unclear, understand
from services.user_simulator.scripted import AGREED, INDIFFERENT, MAX_TURNS, UNCLEAR, scripted_turn

SCHEMAS: dict[str, Json] = {name: {} for name in TOOL_NAMES}
OPENING = [GREETING, user("I cannot use my phone. I want it fixed.")]


def calls_of(body: UserTurnBody) -> list[tuple[str, Json]]:
    return [(call.name, call.arguments) for call in scripted_turn(body).tool_calls]


def test_it_opens_with_its_reason_in_the_first_person():
    reply = scripted_turn(turn(GREETING))
    assert reply.content == "I cannot use my phone. I want it fixed."
    assert (reply.tool_calls, reply.stop, reply.fault) == ([], None, Fault.OK)


def test_it_runs_the_named_tool_then_repeats_what_the_phone_says():
    asked = [*OPENING, agent("Please run grant_app_permission(app_name='messaging', permission='sms') and tell me.")]
    reply = scripted_turn(turn(*asked))
    assert reply.content is None
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [
        ("user_call_0", "grant_app_permission", {"app_name": "messaging", "permission": "sms"})
    ]
    told = scripted_turn(turn(*asked, *ran("grant_app_permission", "Success.")))
    assert (told.content, told.tool_calls) == ("I ran grant_app_permission. It says: Success.", [])


def test_several_named_tools_are_run_one_after_the_other():
    asked = [*OPENING, agent("Please run toggle_data() and then reboot_device().")]
    assert calls_of(turn(*asked)) == [("toggle_data", {})]
    first = [*asked, *ran("toggle_data", "Mobile Data is now ON.", 0)]
    assert calls_of(turn(*first)) == [("reboot_device", {})]
    told = scripted_turn(turn(*first, *ran("reboot_device", "Rebooted.", 1)))
    assert told.content == "I ran toggle_data. It says: Mobile Data is now ON.\nI ran reboot_device. It says: Rebooted."


def test_a_repeated_toggle_is_not_toggled_twice_unless_told_so():
    done = [*OPENING, agent("Please run toggle_data()."), *ran("toggle_data", "Mobile Data is now ON."), user("It says ON.")]
    again = scripted_turn(turn(*done, agent("Please run toggle_data() on your phone.")))
    assert again.tool_calls == []
    assert again.content == "I have done that already. I ran toggle_data. It says: Mobile Data is now ON."
    assert calls_of(turn(*done, agent("Please run toggle_data() again."))) == [("toggle_data", {})]
    assert calls_of(turn(*done, agent("Please run toggle_data() to turn it off."))) == [("toggle_data", {})]
    assert calls_of(turn(*done, agent("Please run toggle_data() to turn it on."))) == []
    both = turn(*done, agent("Please run toggle_data() and reboot_device()."))
    assert calls_of(both) == [("reboot_device", {})]


def test_what_failed_or_may_be_repeated_is_done_again():
    failed = [*OPENING, agent("Please run toggle_data()."), *ran("toggle_data", "Error: no phone"), user("An error.")]
    assert calls_of(turn(*failed, agent("Please run toggle_data()."))) == [("toggle_data", {})]
    looked = [*OPENING, agent("check_vpn_status"), *ran("check_vpn_status", "off"), user("off")]
    assert calls_of(turn(*looked, agent("check_vpn_status"))) == [("check_vpn_status", {})]


@pytest.mark.parametrize(
    ("text", "said", "stop"),
    [
        ("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.", "###TRANSFER###", "transfer"),
        ("Your issue is now resolved. Goodbye!", "Great, thanks for your help. ###STOP###", "stop"),
        ("I turned on roaming and the status bar shows signal. Have a great day!", "Great, thanks for your help. ###STOP###", "stop"),
        ("Could you tell me your phone number?", "I am John Smith with phone number 555-123-2002.", None),
        ("What is your date of birth?", "I don't have that information.", None),
        ("Shall I refuel 2 GB for $4?", AGREED[1], None),
        ("Do you want to be transferred to a human agent?", AGREED[1], None),
        ("Which colour do you like?", INDIFFERENT[1], None),
        ("Zxyq.", UNCLEAR[1], None),
    ],
)
def test_other_lines_get_a_fitting_answer(text: str, said: str, stop: str | None):
    reply = scripted_turn(turn(*OPENING, agent(text)))
    assert (reply.content, reply.stop) == (said, stop)


def test_the_seed_chooses_the_words_and_nothing_else():
    body = turn(*OPENING, agent("Shall I?"))
    said = [scripted_turn(body.model_copy(update={"seed": seed})).content for seed in range(6)]
    assert said == [*AGREED, *AGREED]


AIRLINE = Scenario(
    text="…",
    domain="airline",
    reason_for_call="You want to cancel reservation EHGLP3.",
    known_info="You are Emma Kim.\nYour user id is emma_kim_9957.",
    unknown_info="You do not remember your email address",
    task_instructions="If the agent says no, insist. You want the refund on your gift card.\n\nYou are angry.",
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("May I have your user ID?", "My user id is emma_kim_9957."),
        ("Please give me your full name and user id.", "My user id is emma_kim_9957. I am Emma Kim."),
        ("What is your email?", "I do not remember my email address."),
        ("Where should the refund go?", "I want the refund on my gift card."),
        ("Who am I speaking with?", "I am Emma Kim."),
    ],
)
def test_questions_are_answered_from_the_scenario(text: str, said: str):
    opening = [GREETING, user("I want to cancel reservation EHGLP3.")]
    body = UserTurnBody(scenario=AIRLINE, messages=[*opening, agent(text)])
    assert scripted_turn(body).content == said


NOTIFIED = Scenario(
    text="…",
    domain="mock",
    task_instructions="You just received a notification. First, use the check_notifications tool to see it. Tell the agent you have "
    "completed task_1 and ask them to update it. After the agent confirms, use dismiss_notification to dismiss the notification 'notif_1'.",
)
INBOX: list[Json] = [
    {"type": "function", "function": {"name": "check_notifications", "parameters": {"type": "object", "properties": {}}}},
    {
        "type": "function",
        "function": {
            "name": "dismiss_notification",
            "parameters": {"properties": {"notification_id": {"type": "string"}}, "required": ["notification_id"]},
        },
    },
]


def test_errands_of_the_scenario_are_run_without_being_asked():
    def inbox(*messages: UserSideMessage) -> UserTurnBody:
        return UserTurnBody(scenario=NOTIFIED, tools=INBOX, messages=list(messages))

    assert calls_of(inbox(GREETING)) == [("check_notifications", {})]
    seen = [GREETING, *ran("check_notifications", "[]", 0)]
    opening = scripted_turn(inbox(*seen)).content
    assert opening == "I have completed task_1 and please update it."
    talk = [*seen, user(opening or ""), agent("It is updated. Anything else?")]
    assert calls_of(inbox(*talk)) == [("dismiss_notification", {"notification_id": "notif_1"})]
    end = scripted_turn(inbox(*talk, *ran("dismiss_notification", "dismissed", 1)))
    assert (end.stop, end.tool_calls) == ("stop", [])


def test_in_a_conversation_that_began_without_it_the_user_says_what_it_wants():
    begun = [GREETING, user("Create a task."), agent("The task is created. Is there anything else?")]
    reply = scripted_turn(turn(*begun))
    assert (reply.content, reply.stop) == ("I cannot use my phone. I want it fixed.", None)


def test_it_gives_up_on_an_agent_it_never_understands_and_after_too_many_turns():
    confused = [message for _ in range(3) for message in (agent("Zxyq."), user(UNCLEAR[0]))]
    assert scripted_turn(turn(*OPENING, *confused, agent("Zxyq."))).stop == "out_of_scope"
    long = [message for _ in range(MAX_TURNS) for message in (agent("Shall I?"), user("Yes."))]
    assert scripted_turn(turn(*OPENING, *long, agent("Shall I?"))).stop == "stop"


def run(name: str, **arguments: Any) -> RunTools:
    return RunTools((RunTool(name, arguments),))


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("Can you turn off airplane mode for me?", run("toggle_airplane_mode")),
        ("What does the status bar show?", run("check_status_bar")),
        ("Please reboot your phone.", run("reboot_device")),
        ("Could you disconnect the VPN?", run("disconnect_vpn")),
        ("Are you connected to a VPN?", run("check_vpn_status")),
        ("Please allow the messaging app to use storage.", run("grant_app_permission", app_name="messaging", permission="storage")),
        ("Please make the payment now.", run("make_payment")),
        ("run check_vpn_status and then toggle_data", run("check_vpn_status")),
        ("Don't run toggle_data(), run reboot_device().", run("reboot_device")),
        ("Please run: toggle_data {}", run("toggle_data")),
        ("no_such_tool()", Unclear()),
        ("May I have your name?", Identify(("name",))),
        ("Could you verify your identity?", Identify()),
        ("Do you want me to proceed?", Confirm()),
        ("Should it be red or blue?", Decide()),
        ("Have a great day!", Goodbye()),
        ("I am transferring you now.", Transferred()),
    ],
)
def test_requests_in_plain_words_are_understood(text: str, request_: Any):
    assert understand(text, SCHEMAS) == request_


TWO_TEXTS: Json = {"properties": {"tool": {"type": "string"}, "arguments": {"type": "string"}}, "required": ["tool", "arguments"]}


@pytest.mark.parametrize(
    "written",
    [
        "use(tool='dispute', arguments='{\"id\": \"t (1)\"}')",
        'use(tool="dispute", arguments="{\\"id\\": \\"t (1)\\"}")',
        'use {"tool": "dispute", "arguments": "{\\"id\\": \\"t (1)\\"}"}',
        'use({"tool": "dispute", "arguments": {"id": "t (1)"}})',
        "use('dispute', {'id': 't (1)'})",
        'use(tool=dispute, arguments={"id": "t (1)"})',
    ],
)
def test_calls_may_be_written_in_many_ways(written: str):
    assert written_calls(f"Please run {written} for me (thanks).", {"use": TWO_TEXTS}) == [
        ("use", {"tool": "dispute", "arguments": '{"id": "t (1)"}'})
    ]


def test_bare_words_are_read_as_tau2_prints_them():
    text = "apply(card_type=Gold Card, income=75000, plus=False, note=None)"
    assert written_calls(text, {"apply": {}}) == [("apply", {"card_type": "Gold Card", "income": 75000, "plus": False, "note": None})]


@given(st.text(max_size=200), st.lists(st.sampled_from(TOOL_NAMES), max_size=5))
def test_any_text_is_answered_with_text_or_one_known_tool_and_always_alike(text: str, extra: list[str]):
    body = turn(*OPENING, agent(text + " ".join(f"{name}({text})" for name in extra)))
    reply = scripted_turn(body)
    assert reply == scripted_turn(body)
    assert bool(reply.content) != bool(reply.tool_calls)
    assert len(reply.tool_calls) <= 1
    assert all(call.name in TOOL_NAMES for call in reply.tool_calls)


@given(st.dictionaries(st.sampled_from("abc"), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()), max_size=3))
def test_arguments_written_as_python_come_back_as_they_were(arguments: Json):
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    assert written_calls(f"Run toggle_data({written}) please", {"toggle_data": {}}) == [("toggle_data", arguments)]


def test_the_scenario_of_the_tests_is_a_telecom_one():
    assert (SCENARIO.domain, len(TOOLS)) == ("telecom", len(TOOL_NAMES))
