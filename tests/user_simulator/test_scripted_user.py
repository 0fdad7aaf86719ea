"""The scripted user: what it says and does follows from the conversation alone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_fakes import GREETING, TOOL_NAMES, agent, ran, turn, user

from services.common.wire.users import Fault
from services.user_simulator.requests import Confirm, Goodbye, Introduce, RunTool, Transferred, Unclear, understand
from services.user_simulator.scripted import MAX_TURNS, UNCLEAR, scripted_turn

OPENING = [GREETING, user("I cannot use my phone.")]


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


def test_a_repeated_toggle_is_not_toggled_twice_unless_told_so():
    done = [*OPENING, agent("Please run toggle_data()."), *ran("toggle_data", "Mobile Data is now ON."), user("It says ON.")]
    again = scripted_turn(turn(*done, agent("Please run toggle_data().")))
    assert again.tool_calls == []
    assert "I have done that already" in (again.content or "")
    assert "Mobile Data is now ON." in (again.content or "")
    told = scripted_turn(turn(*done, agent("Please run toggle_data() again.")))
    assert [(call.id, call.name) for call in told.tool_calls] == [("user_call_1", "toggle_data")]
    look = scripted_turn(
        turn(*done, *[agent("check_vpn_status"), *ran("check_vpn_status", "off", 1)], user("off"), agent("check_vpn_status"))
    )
    assert [call.name for call in look.tool_calls] == ["check_vpn_status"]


@pytest.mark.parametrize(
    ("text", "said", "stop"),
    [
        ("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.", "###TRANSFER###", "transfer"),
        ("Your issue is now resolved. Goodbye!", "Thank you, that is all. ###STOP###", "stop"),
        ("Could you tell me your phone number?", "I am John Smith with phone number 555-123-2002.", None),
        ("Shall I refuel 2 GB for $4?", "Yes, please go ahead.", None),
        ("Zxyq.", UNCLEAR, None),
    ],
)
def test_other_lines_get_a_fitting_answer(text: str, said: str, stop: str | None):
    reply = scripted_turn(turn(*OPENING, agent(text)))
    assert (reply.content, reply.stop) == (said, stop)


def test_it_gives_up_on_an_agent_it_never_understands_and_after_too_many_turns():
    confused = [message for _ in range(3) for message in (agent("Zxyq."), user(UNCLEAR))]
    assert scripted_turn(turn(*OPENING, *confused, agent("Zxyq."))).stop == "out_of_scope"
    long = [message for _ in range(MAX_TURNS) for message in (agent("Shall I?"), user("Yes."))]
    assert scripted_turn(turn(*OPENING, *long, agent("Shall I?"))).stop == "stop"


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("Can you turn off airplane mode for me?", RunTool("toggle_airplane_mode", {})),
        ("What does the status bar show?", RunTool("check_status_bar", {})),
        ("Please reboot your phone.", RunTool("reboot_device", {})),
        ("Could you disconnect the VPN?", RunTool("disconnect_vpn", {})),
        ("Are you connected to a VPN?", RunTool("check_vpn_status", {})),
        (
            "Please allow the messaging app to use storage.",
            RunTool("grant_app_permission", {"app_name": "messaging", "permission": "storage"}),
        ),
        ("Please make the payment now.", RunTool("make_payment", {})),
        ("run check_vpn_status and then toggle_data", RunTool("check_vpn_status", {})),
        ("set_network_mode_preference(mode='2g_only')", RunTool("set_network_mode_preference", {"mode": "2g_only"})),
        ("set_network_mode_preference(mode=whatever)", RunTool("set_network_mode_preference", {})),
        ("no_such_tool()", Unclear()),
        ("May I have your name?", Introduce()),
        ("Do you want me to proceed?", Confirm()),
        ("Have a great day!", Goodbye()),
        ("I am transferring you now.", Transferred()),
    ],
)
def test_requests_in_plain_words_are_understood(text: str, request_: Any):
    assert understand(text, TOOL_NAMES) == request_


@given(st.text(max_size=200), st.lists(st.sampled_from(TOOL_NAMES), max_size=5))
def test_any_text_is_answered_with_text_or_one_known_tool_and_always_alike(text: str, extra: list[str]):
    body = turn(*OPENING, agent(text + " ".join(f"{name}({text})" for name in extra)))
    reply = scripted_turn(body)
    assert reply == scripted_turn(body)
    assert bool(reply.content) != bool(reply.tool_calls)
    assert len(reply.tool_calls) <= 1
    assert all(call.name in TOOL_NAMES for call in reply.tool_calls)
