"""Conversations that begin in the middle: a task's message history, and a recorded conversation that goes on."""

import pytest

from services.agent_runner.conversation.messages import Message, ToolCall, for_record, read_history, read_record
from services.agent_runner.conversation.protocol import GREETING, Conversation, Role, Termination
from services.agent_runner.domains import DomainBackend, ToolResult

OK, ERROR = ToolResult("fine"), ToolResult("Error: no", error=True)
USER_ASKS = Message("user", "do it")
AGENT_CALLS = Message("assistant", None, (ToolCall("c1", "create", {"n": 1}),))
RESULT = Message("tool", "done", tool_call_id="c1")
CALL = ToolCall("a", "f", {})
AGENT_TELLS = Message("assistant", "It is done.")
USER_CALLS = Message("user", None, (ToolCall("u1", "look", {}),))
USER_RESULT = Message("tool", "nothing", requestor="user", tool_call_id="u1")


def begun(*history: Message, solo: bool = False, enforce: bool = False) -> Conversation:
    return Conversation(solo=solo, max_steps=100, max_errors=10, history=history, enforce=enforce)


@pytest.mark.parametrize(
    ("history", "speaker"),
    [
        ((USER_ASKS,), Role.AGENT),
        ((USER_ASKS, AGENT_CALLS, RESULT), Role.AGENT),
        ((USER_ASKS, AGENT_CALLS), Role.ENV),
        ((USER_ASKS, AGENT_CALLS, RESULT, AGENT_TELLS), Role.USER),
        ((AGENT_TELLS, USER_CALLS), Role.ENV),
        ((AGENT_TELLS, USER_CALLS, USER_RESULT), Role.USER),
    ],
)
def test_who_speaks_follows_from_the_last_message_and_nothing_has_been_counted(history: tuple[Message, ...], speaker: Role):
    talk = begun(*history)
    assert talk.speaker is speaker
    assert (talk.steps, talk.turns, talk.errors, talk.n_given) == (0, 0, 0, len(history))
    assert GREETING not in [message.content for message in talk.messages]


def test_both_sides_see_their_part_of_the_history():
    talk = begun(USER_ASKS, AGENT_CALLS, RESULT, AGENT_TELLS, USER_CALLS, USER_RESULT)
    assert talk.agent_view() == [USER_ASKS, AGENT_CALLS, RESULT, AGENT_TELLS]
    assert talk.user_view() == [USER_ASKS, AGENT_TELLS, USER_CALLS, USER_RESULT]


def test_a_call_at_the_end_of_the_history_is_answered_to_its_maker():
    talk = begun(AGENT_TELLS, USER_CALLS)
    talk.env_said([ERROR])
    assert (talk.speaker, talk.messages[-1].requestor, talk.messages[-1].error, talk.errors) == (Role.USER, "user", True, 1)


def test_a_history_that_ends_with_a_stop_is_over_before_it_begins():
    assert begun(AGENT_TELLS, Message("user", "bye ###STOP###")).termination is Termination.USER_STOP


def test_a_solo_history_is_the_agents_tool_traffic_and_the_next_message_is_a_step():
    talk = begun(AGENT_CALLS, RESULT, solo=True)
    assert talk.speaker is Role.AGENT
    talk.agent_said(Message("assistant", None, (ToolCall("c2", "look", {}),)))
    assert talk.steps == 1


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ((RESULT,), r"message_history\[0\]: a tool result that answers no call"),
        ((AGENT_CALLS, USER_ASKS), r"message_history\[1\]: 1 tool results are missing before it"),
        ((AGENT_CALLS, Message("tool", "x", tool_call_id="other")), r"message_history\[1\]: a tool result that answers no call"),
        ((USER_CALLS, Message("tool", "x", tool_call_id="u1")), r"message_history\[1\]: a tool result that answers no call"),
        ((Message("assistant", " "),), r"message_history\[0\]: neither text nor a tool call"),
        ((Message("assistant", None, (CALL, ToolCall("b", "f", {}))), Message("tool", "x", tool_call_id="a")), "at its end"),
    ],
)
def test_a_history_that_cannot_have_happened_is_refused(history: tuple[Message, ...], why: str):
    with pytest.raises(ValueError, match=why):
        begun(*history)


@pytest.mark.parametrize("history", [(USER_ASKS,), (AGENT_TELLS,)])
def test_a_solo_history_with_words_in_it_is_refused(history: tuple[Message, ...]):
    with pytest.raises(ValueError, match="only tool calls of the agent"):
        begun(*history, solo=True)


def test_mocks_tasks_with_a_history_begin_with_the_user(mock: DomainBackend):
    task = next(task for task in mock.tasks(mock.splits()[0]) if task.task_id == "update_task_with_message_history")
    talk = begun(*(read_history(raw) for raw in task.message_history))
    assert talk.speaker is Role.USER
    assert [message.role for message in talk.agent_view()] == ["user", "assistant", "tool", "assistant"]
    assert [message.role for message in talk.user_view()] == ["user", "assistant"]
    with pytest.raises(ValueError, match="cannot begin a conversation"):
        read_history({"role": "system", "content": "x"})


@pytest.mark.parametrize("speaker", ["assistant", "user"])
def test_enforcing_the_protocol_ends_at_text_beside_calls_with_whoever_sent_it(speaker: str):
    calls = (ToolCall("c", "f", {}),)
    talk = begun(USER_ASKS if speaker == "assistant" else AGENT_TELLS, enforce=True)
    said = Message("assistant" if speaker == "assistant" else "user", "one moment", calls)
    (talk.agent_said if speaker == "assistant" else talk.user_said)(said)
    assert talk.termination is (Termination.AGENT_ERROR if speaker == "assistant" else Termination.USER_ERROR)
    assert "sent text and tool calls" in talk.detail
    assert begun(said, enforce=True).termination is talk.termination
    assert begun(said).termination is None


def test_enforcing_the_protocol_wins_over_a_solo_stop_beside_calls():
    talk = begun(solo=True, enforce=True)
    talk.agent_said(Message("assistant", "###STOP###", (ToolCall("c", "f", {}),)))
    assert talk.termination is Termination.AGENT_ERROR
    done = begun(solo=True, enforce=True)
    done.agent_said(Message("assistant", "I am", (ToolCall("c", "done", {}),)))
    assert done.termination is Termination.AGENT_STOP


def lived() -> Conversation:
    talk = begun()
    talk.user_said(Message("user", "hi", note={"fault": "role_flip"}))
    talk.agent_said(Message("assistant", None, (ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {}))))
    talk.env_said([OK, ERROR])
    talk.agent_said(Message("assistant", "please look"))
    talk.user_said(Message("user", None, (ToolCall("u", "look", {}),)))
    talk.env_said([ERROR])
    return talk


@pytest.mark.parametrize("upto", range(1, 9))
def test_a_recorded_conversation_goes_on_exactly_where_it_was(upto: int):
    whole = lived()
    records = [for_record(message) for message in whole.messages[:upto]]
    again = begun()
    try:
        again.said([read_record(raw) for raw in records[1:]])
    except ValueError:
        # Cut between the results of one message: such a place was never anybody's turn.
        assert upto == 4
        return
    assert [for_record(message) for message in again.messages] == records
    assert again.turns == 0
    if upto == 8:
        assert (again.speaker, again.steps, again.errors) == (whole.speaker, whole.steps, whole.errors)
        assert [for_record(message) for message in again.user_view()] == [for_record(message) for message in whole.user_view()]


def test_a_recorded_conversation_that_breaks_the_protocol_is_refused():
    with pytest.raises(ValueError, match="agent may not speak now"):
        begun().said([AGENT_TELLS])
    with pytest.raises(ValueError, match="env may not speak now"):
        begun().said([RESULT])
