"""Captured ids are what the server got and said: for extended, rewritten, branched and random conversations."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_helpers import SYSTEM, MakeProxy, ProxyUnderTest, call_text, tool, user

END = "<|im_end|>"


def result(message: dict[str, Any], content: str = "done") -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": content} for call in message.get("tool_calls", [])]


def test_each_turn_sends_only_the_new_text_to_the_tokenizer(proxy: ProxyUnderTest) -> None:
    proxy.says(*[f"answer {number}{END}" for number in range(4)])
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    for number in range(4):
        messages += [session.say(messages), user(f"and {number}?")]
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None, *(record.call_id for record in records[:-1])]
    texts = [proxy.renderer.decode(record.prompt_ids().tolist()) for record in records[1:]]
    assert texts == [f"\n<|im_start|>user\nand {number}?{END}\n<|im_start|>assistant\n" for number in range(3)]
    assert proxy.metric("branches_total") == 0


def test_white_space_that_the_template_trims_is_still_the_same_turn(proxy: ProxyUnderTest) -> None:
    sloppy = '<tool_call>{"arguments": {"city":   "Paris"}, "name": "look_up"}</tool_call>'
    proxy.says(f"  Hello. \n\n{END}", f"{sloppy}{END}", f"bye{END}")
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    messages += [session.say(messages, tools=[tool()]), user("weather?")]
    called = session.say(messages, tools=[tool()])
    messages += [called, *result(called)]
    session.say(messages, tools=[tool()])
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None, records[0].call_id, records[1].call_id]
    assert proxy.metric("branches_total") == 0
    assert sloppy in proxy.renderer.decode(proxy.engine.exchanges[-1].input_ids)


def test_a_turn_cut_off_by_length_is_closed_in_the_next_prompt(proxy: ProxyUnderTest) -> None:
    proxy.says("one two three four", f"five{END}")
    session = proxy.open()
    messages = [user("count")]
    messages += [session.say(messages, max_tokens=4), user("go on")]
    session.say(messages)
    records = proxy.assert_token_exact(session)
    assert records[1].parent == records[0].call_id
    assert records[1].prompt_ids()[0] == proxy.renderer.eos_id


def test_an_edited_history_is_a_branch_of_its_own(proxy: ProxyUnderTest) -> None:
    proxy.says(*[f"answer {number}{END}" for number in range(5)])
    session = proxy.open()
    first = [SYSTEM, user("hi")]
    said = session.say(first)
    second = [*first, said, user("more")]
    session.say(second)
    session.say([*first, said, user("something else")])
    session.say([*first, said | {"content": "what it never said"}, user("more")])
    session.say([SYSTEM, user("another start")])
    records = proxy.assert_token_exact(session)
    ids = [record.call_id for record in records]
    assert [record.parent for record in records] == [None, ids[0], ids[0], None, None]
    assert proxy.metric("branches_total") == 3


def test_the_longest_call_that_fits_is_the_parent(proxy: ProxyUnderTest) -> None:
    proxy.says(f"same{END}")
    session = proxy.open()
    messages = [user("a")]
    for text in "bc":
        messages += [session.say(messages), user(text)]
    deep = [*messages, session.say(messages), user("d")]
    session.say([user("a")])
    session.say(deep)
    records = proxy.assert_token_exact(session)
    assert records[4].parent == records[2].call_id


def test_reasoning_that_the_template_drops_starts_a_branch(proxy: ProxyUnderTest) -> None:
    proxy.says(f"<think>\nhm\n</think>\n\nHello.{END}")
    session = proxy.open()
    messages = [user("hi")]
    session.say([*messages, session.say(messages), user("more")])
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None, None]
    assert "<think>" not in proxy.renderer.decode(proxy.engine.exchanges[-1].input_ids)
    assert proxy.metric("branches_total") == 1


def test_agents_that_take_turns_each_keep_their_own_path(proxy: ProxyUnderTest) -> None:
    """A sub-agent's first call is a branch at the root; after that both go on where they were."""
    proxy.says(f"answer{END}")
    session = proxy.open()
    agents = [[SYSTEM | {"content": f"You are agent {number}. " * 50}, user("hi")] for number in range(3)]
    for turn in range(4):
        for messages in agents:
            messages += [session.say(messages), user(f"and {turn}?")]
    records = proxy.assert_token_exact(session)
    ids = [record.call_id for record in records]
    assert [record.parent for record in records] == [None, None, None, *ids[:-3]]
    assert proxy.metric("branches_total") == 2


def test_calls_made_side_by_side_after_the_same_call_are_branches(proxy: ProxyUnderTest) -> None:
    proxy.says(f"answer{END}")
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    messages.append(session.say(messages))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: session.say([*messages, user(f"and {number}?")]), range(4)))
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None] + [records[0].call_id] * 4
    assert proxy.metric("branches_total") == 3


def test_a_call_sent_again_under_its_id_is_no_branch(proxy: ProxyUnderTest) -> None:
    proxy.says(f"answer{END}")
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    for call_id in ("a", "a", "b"):
        said = session.say(messages, call_id=call_id)
    session.say([*messages, said, user("more")])
    assert len(proxy.assert_token_exact(session)) == 3
    assert proxy.metric("branches_total") == 1


def test_a_path_goes_on_where_memory_has_forgotten_it(make_proxy: MakeProxy) -> None:
    """Another proxy, or this one after a crash, has the records alone."""
    proxy = make_proxy()
    proxy.says(f"answer{END}")
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    for turn in range(6):
        if turn == 3:
            proxy.restart()
        messages += [session.say(messages), user(f"and {turn}?")]
    records = proxy.assert_token_exact(session)
    assert [record.parent for record in records] == [None, *(record.call_id for record in records[:-1])]
    n_new = [len(record.prompt) for record in records]
    assert max(n_new[1:]) < n_new[0]


def test_other_tools_make_another_prompt(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    messages = [SYSTEM, user("hi")]
    said = session.say(messages, tools=[tool()])
    session.say([*messages, said, user("more")], tools=[tool("other")])
    assert [record.parent for record in proxy.assert_token_exact(session)] == [None, None]


def test_a_demonstration_is_what_generation_would_have_recorded(proxy: ProxyUnderTest) -> None:
    """The same conversation, said once by the policy and shown once: the same rows, but for logprobs and versions."""
    spoken = [call_text("look_up", city="Paris"), "It rains."]
    proxy.says(*[text + END for text in spoken])
    generated, shown = proxy.open(), proxy.open()
    messages = [SYSTEM, user("weather?")]
    for _ in spoken:
        message = generated.say(messages, tools=[tool()])
        assert shown.demonstrate(messages, message, [tool()]).status_code == 200
        messages += [message, *result(message, "rain"), user("and?")]
    said = generated.records
    demonstrated = shown.records
    for one, other in zip(said, demonstrated, strict=True):
        assert one.prompt == other.prompt
        assert one.output == other.output
        assert (one.parent is None) == (other.parent is None)
        assert other.logprobs is None
        assert other.versions == [(0, len(other.output) // 4)]
    assert proxy.http.get(f"/v1/sessions/{shown.session_id}/calls?view=tokens").json()["calls"][0]["logprobs"] is None


def test_a_demonstration_sent_again_is_recorded_once(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    replies = [session.demonstrate([user("hi")], {"role": "assistant", "content": "hello"}, []) for _ in range(2)]
    assert replies[0].json() == replies[1].json()
    assert len(session.records) == 1


def test_a_demonstration_of_something_else_is_refused(proxy: ProxyUnderTest) -> None:
    session = proxy.open()
    reply = session.demonstrate([user("hi")], user("no assistant"), [])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "message.role"


# Text of words, white space, markup and odd Unicode, such as a policy that is still learning says it.
PIECES = st.sampled_from(
    ["hello", " world", "\n", "  ", "é", "日本", "🙂", "<", "<think>", "</think>", "<tool_call>", "</tool_call>", "{", '"name"', "ok."]
)
FREE_TEXT = st.lists(PIECES, max_size=6).map("".join)
CALLS = st.builds(
    lambda name, value, indent: f"<tool_call>\n{json.dumps({'name': name, 'arguments': {'x': value}}, indent=indent)}\n</tool_call>",
    st.sampled_from(["look_up", "fix"]),
    st.one_of(st.integers(-5, 5), st.sampled_from(["é", "a b", ""]), st.none()),
    st.sampled_from([None, 1]),
)
SAID = st.tuples(st.one_of(FREE_TEXT, CALLS, st.builds("{}\n{}".format, FREE_TEXT, CALLS)), st.sampled_from([END, END, END, ""]))
STEP = st.sampled_from(["extend", "extend", "extend", "again", "shorten", "edit", "restart"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(SAID, FREE_TEXT, STEP), min_size=1, max_size=6))
def test_random_conversations(proxy: ProxyUnderTest, turns: list[tuple[tuple[str, str], str, str]]) -> None:
    session = proxy.open()
    messages: list[dict[str, Any]] = [SYSTEM, user("hi")]
    extended = True
    for (text, end), reply, step in turns:
        proxy.says(text + end)
        before = list(messages)
        message = session.say(messages, tools=[tool(), tool("fix")])
        messages += [message, *result(message, reply), user(reply)]
        extended = extended and step == "extend" and not message.get("reasoning_content")
        if step == "again":
            session.say(before, tools=[tool(), tool("fix")])
        elif step == "shorten":
            messages = before
        elif step == "edit":
            messages[-1] = user(reply + "!")
            messages[1] = user("hello")
        elif step == "restart":
            messages = [SYSTEM, user(reply)]
    records = proxy.assert_token_exact(session)
    sent = sum(len(exchange.input_ids) for exchange in proxy.engine.exchanges[-len(records) :])
    assert sum(len(record.prompt) // 4 for record in records) <= sent
    if extended:
        assert [record.parent for record in records] == [None, *(record.call_id for record in records[:-1])]
