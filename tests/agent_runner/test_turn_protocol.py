"""The turn protocol, rule by rule (upstream tau2 1.0.1)."""

import pytest

from services.agent_runner.conversation.messages import Malformed, Message, ToolCall, read_agent_message
from services.agent_runner.conversation.protocol import GREETING, STOP, Conversation, Role, Termination
from services.agent_runner.domains import ToolResult

OK, ERROR = ToolResult("fine"), ToolResult("Error: no", error=True)


def solo(max_steps: int = 100, max_errors: int = 10) -> Conversation:
    return Conversation(solo=True, max_steps=max_steps, max_errors=max_errors)


def normal(max_steps: int = 100, max_errors: int = 10) -> Conversation:
    return Conversation(solo=False, max_steps=max_steps, max_errors=max_errors)


def calls(*names: str, content: str | None = None) -> Message:
    return Message("assistant", content, tuple(ToolCall(f"c{index}", name, {}) for index, name in enumerate(names)))


def user(text: str | None = None, *names: str) -> Message:
    return Message("user", text, tuple(ToolCall(f"u{index}", name, {}) for index, name in enumerate(names)))


def agent(text: str) -> Message:
    return Message("assistant", text)


def test_a_normal_conversation_begins_with_the_greeting_and_the_user_answers_it():
    talk = normal()
    assert (talk.speaker, talk.messages[0].content, talk.turns, talk.steps) == (Role.USER, GREETING, 0, 0)
    talk.user_said(user("my phone is broken"))
    assert talk.speaker is Role.AGENT
    assert [message.content for message in talk.agent_view()] == [GREETING, "my phone is broken"]


def test_a_solo_conversation_begins_with_the_agent_whose_first_message_is_no_step():
    talk = solo()
    assert (talk.speaker, talk.messages) == (Role.AGENT, [])
    talk.agent_said(calls("look"))
    assert (talk.speaker, talk.steps) == (Role.ENV, 0)
    talk.env_said([OK])
    assert (talk.speaker, talk.steps) == (Role.AGENT, 1)


def test_results_go_back_to_whoever_called_and_the_other_side_never_sees_them():
    talk = normal()
    talk.user_said(user(None, "check"))
    assert (talk.speaker, talk.caller) == (Role.ENV, Role.USER)
    talk.env_said([OK])
    assert talk.speaker is Role.USER
    talk.user_said(user("it says fine"))
    talk.agent_said(calls("look", "look_again"))
    talk.env_said([OK, ERROR])
    assert talk.speaker is Role.AGENT
    assert [message.role for message in talk.agent_view()] == ["assistant", "user", "assistant", "tool", "tool"]
    assert [message.role for message in talk.user_view()] == ["assistant", "user", "tool", "user"]
    assert [message.tool_call_id for message in talk.agent_view()[-2:]] == ["c0", "c1"]
    assert talk.errors == 1


def test_text_beside_tool_calls_goes_to_the_environment_and_not_to_the_user():
    talk = normal()
    talk.user_said(user("hi"))
    talk.agent_said(calls("look", content="one moment"))
    assert talk.speaker is Role.ENV
    talk.env_said([OK])
    assert "one moment" not in [message.content for message in talk.user_view()]
    assert "one moment" in [message.content for message in talk.agent_view()]


@pytest.mark.parametrize("token", ["###STOP###", "thanks ###TRANSFER###", "###OUT-OF-SCOPE### sorry"])
def test_each_of_the_users_tokens_ends_a_conversation(token: str):
    talk = normal()
    talk.user_said(user(token))
    assert (talk.speaker, talk.termination) == (None, Termination.USER_STOP)


def test_a_users_stop_token_beside_a_tool_call_does_not_end_it():
    talk = normal()
    talk.user_said(user("###STOP###", "check"))
    assert talk.speaker is Role.ENV


def test_in_normal_mode_the_agents_stop_token_is_plain_text():
    talk = normal()
    talk.user_said(user("hi"))
    talk.agent_said(agent(STOP))
    assert talk.speaker is Role.USER


def test_a_stop_on_the_very_step_that_reaches_max_steps_counts_as_max_steps():
    talk = normal(max_steps=3)
    talk.user_said(user("hi"))
    talk.agent_said(agent("bye"))
    talk.user_said(user("###STOP###"))
    assert talk.termination is Termination.MAX_STEPS
    enough = normal(max_steps=4)
    enough.user_said(user("hi"))
    enough.agent_said(agent("bye"))
    enough.user_said(user("###STOP###"))
    assert enough.termination is Termination.USER_STOP


def test_max_steps_is_not_looked_at_while_the_environment_owes_an_answer():
    talk = solo(max_steps=2)
    talk.agent_said(calls("look"))
    talk.env_said([OK])
    talk.agent_said(calls("look"))
    assert (talk.steps, talk.speaker) == (2, Role.ENV)
    talk.env_said([OK])
    assert (talk.steps, talk.termination) == (3, Termination.MAX_STEPS)


def test_done_on_the_last_step_is_overwritten_too_but_an_immediate_done_is_not():
    talk = solo(max_steps=2)
    talk.agent_said(calls("look"))
    talk.env_said([OK])
    talk.agent_said(calls("done"))
    assert talk.termination is Termination.MAX_STEPS
    at_once = solo(max_steps=1)
    at_once.agent_said(calls("done"))
    assert at_once.termination is Termination.AGENT_STOP


def test_errors_of_both_sides_add_up_and_are_never_reset():
    talk = normal(max_errors=3)
    talk.user_said(user(None, "a"))
    talk.env_said([ERROR])
    talk.user_said(user("broken"))
    talk.agent_said(calls("b", "c"))
    talk.env_said([ERROR, OK])
    talk.agent_said(calls("d"))
    assert talk.termination is None
    talk.env_said([ERROR])
    assert (talk.errors, talk.termination) == (3, Termination.TOO_MANY_ERRORS)


def test_done_with_other_calls_discards_them_and_becomes_a_stop():
    talk = solo()
    talk.agent_said(calls("toggle_data", "done"))
    assert talk.termination is Termination.AGENT_STOP
    assert (talk.messages[-1].content, talk.messages[-1].tool_calls) == (STOP, ())


def test_text_without_a_call_is_a_solo_agents_error():
    talk = solo()
    talk.agent_said(agent("hello?"))
    assert talk.termination is Termination.AGENT_ERROR
    stop = solo()
    stop.agent_said(agent(STOP))
    assert stop.termination is Termination.AGENT_ERROR


def test_a_solo_stop_token_beside_calls_is_the_agents_error():
    first = solo()
    first.agent_said(calls("look", content=STOP))
    assert first.termination is Termination.AGENT_ERROR
    later = solo()
    later.agent_said(calls("look"))
    later.env_said([OK])
    later.agent_said(calls("look", content=STOP))
    assert later.termination is Termination.AGENT_ERROR


def test_speaking_out_of_turn_is_refused():
    talk = solo()
    with pytest.raises(ValueError, match="user may not speak now, agent may"):
        talk.user_said(user("hi"))
    with pytest.raises(ValueError, match="env may not speak now"):
        talk.env_said([])


def message_with(arguments: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize("arguments", ['{"a": 1', "[1]", "3", "", None, '"x"'])
def test_arguments_that_are_no_json_object_are_malformed(arguments: object):
    with pytest.raises(Malformed, match="arguments of f"):
        read_agent_message(message_with(arguments))


@pytest.mark.parametrize("content", [None, "", "  \n", "<think>only thoughts</think>", "<think>cut off", "never opened</think>"])
def test_a_message_without_text_and_calls_is_malformed(content: str | None):
    with pytest.raises(Malformed, match="empty message"):
        read_agent_message({"role": "assistant", "content": content})


@pytest.mark.parametrize(
    ("content", "aloud"),
    [
        ("<think>a</think>\n\nhello", "hello"),
        ("hello <think>a</think>there", "hello there"),
        ("a</think>\nhello", "hello"),
        ("hello", "hello"),
        (" I think> so ", "I think> so"),
    ],
)
def test_reasoning_is_cut_out_of_what_is_said(content: str, aloud: str):
    assert read_agent_message({"role": "assistant", "content": content}).content == aloud


def test_reasoning_stays_in_the_agents_own_history():
    raw = {"role": "assistant", "content": "<think>secret</think> hello", "reasoning_content": "more secrets"}
    message = read_agent_message(raw)
    assert (message.content, message.private) == ("hello", raw)
