"""Chat templates of several families: what they write, and that going on from a checkpoint writes the same as beginning anew."""

import json
from pathlib import Path
from typing import Any

import pytest
from conversation_strategies import conversations
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy_helpers import SYSTEM, tool, user
from template_samples import QWEN3, QWEN25, samples

from services.common.errors import BadRequest
from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.prompts.template import ChatTemplate
from services.policy_proxy.prompts.template_run import Checkpoint, Rendered
from services.policy_proxy.prompts.texts import Text

Json = dict[str, Any]
TEMPLATES = {name: ChatTemplate(source, {"eos_token": "<|im_end|>"}) for name, source in samples().items()}
CALL: Json = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": {"city": "Paris"}}}
CALLED: Json = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
RESULTS: list[Json] = [{"role": "tool", "tool_call_id": "c", "content": text} for text in ("rain", "sun")]


def begin(template: ChatTemplate, messages: list[Json], **extra: Any) -> Rendered:
    return template.begin(messages, [tool()], add_generation_prompt=True, extra=extra)


def go_on(template: ChatTemplate, base: Checkpoint | None, messages: list[Json], **extra: Any) -> Rendered | None:
    assert base is not None
    return template.go_on(base, messages, [tool()], add_generation_prompt=True, extra=extra)


def same(one: Text, other: Text) -> bool:
    return len(one) == len(other) and one.digests([len(one)]) == other.digests([len(other)])


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12, deadline=None)
@given(turns=conversations(), extra=st.sampled_from([{}, {"enable_thinking": False}]), with_tools=st.booleans())
def test_going_on_writes_what_beginning_anew_writes(name: str, turns: list[list[Json]], extra: Json, with_tools: bool) -> None:
    template, tools = TEMPLATES[name], [tool()] if with_tools else []
    messages: list[Json] = []
    base: Checkpoint | None = None
    for turn in turns:
        messages = [*messages, *turn]
        anew = template.begin(messages, tools, add_generation_prompt=True, extra=extra)
        plain = template.render(messages, tools, add_generation_prompt=True, extra=extra)
        assert anew.text.rest.decode() == plain
        on = None if base is None else template.go_on(base, messages, tools, add_generation_prompt=True, extra=extra)
        assert (on is None) == (base is None)
        if on is not None:
            assert same(on.text, anew.text)
            assert plain.encode().endswith(on.text.rest)
        base = (on or anew).checkpoint
        assert (base is None) == (name == "deepseek")


STEADY = "{% for message in messages %}{{ message.content }}{% endfor %}"
NOT_SHOWN = {
    "no loop": "{{ messages[0].content }}",
    "a state in the loop": "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{{ s.n }}{% endfor %}",
    "the length": "{% for m in messages %}{{ loop.length }}{% endfor %}",
    "the end": "{% for m in messages %}{{ loop.revindex }}{% endfor %}",
    "the loop itself": "{% for m in messages %}{% set outer = loop %}{{ outer.index }}{% endfor %}",
    "the last message": "{% for m in messages %}{{ (messages | last).content }}{% endfor %}",
    "a slice": "{% for m in messages %}{{ messages[loop.index0:] | length }}{% endfor %}",
    "a way out": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "a filter": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "time": "{% for m in messages %}{{ strftime_now('%f') }}{% endfor %}",
    "chance": "{% for m in messages %}{{ [1, 2] | random }}{% endfor %}",
    "time in a macro": "{% macro at() %}{{ strftime_now('%f') }}{% endmacro %}{% for m in messages %}{{ at() }}{% endfor %}",
    "a state in a macro": (
        "{% set s = namespace(n=0) %}{% macro more() %}{% set s.n = s.n + 1 %}{{ s.n }}{% endmacro %}"
        "{% for m in messages %}{{ more() }}{% endfor %}"
    ),
    "a name set twice": "{% set text = 'a' %}{% for m in messages %}{{ text }}{% set text = m.content %}{% endfor %}",
}


@pytest.mark.parametrize("source", NOT_SHOWN.values(), ids=NOT_SHOWN.keys())
def test_a_loop_that_may_depend_on_more_always_begins_anew(source: str) -> None:
    template = ChatTemplate(source, {})
    rendered = begin(template, [user("a"), user("b")])
    assert rendered.checkpoint is None
    assert rendered.text.skipped == 0


NOT_STEADY = {
    "an index from the end": "{% for m in messages %}{{ messages[loop.index0 - 1].content }}{% endfor %}",
    "two ahead": "{% for m in messages %}{{ messages[loop.index0 + 2] or 'end' }}{% endfor %}",
    "other items": "{% for m in messages | reverse | list %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("source", NOT_STEADY.values(), ids=NOT_STEADY.keys())
def test_a_message_that_was_looked_at_too_far_away_makes_no_checkpoint(source: str) -> None:
    assert begin(ChatTemplate(source, {}), [user("a"), user("b"), user("c")]).checkpoint is None


def test_what_the_loop_reads_must_be_the_same() -> None:
    """The head looks through the whole conversation; where it finds something else, everything may read differently."""
    template = ChatTemplate(
        "{% set formal = messages | selectattr('content', 'equalto', 'Sir') | list | length > 0 %}"
        "{% for m in messages %}{{ ('Dear ' if formal else 'hey ') + m.content + '\\n' }}{% endfor %}",
        {},
    )
    first = begin(template, [user("a"), user("b")])
    on = go_on(template, first.checkpoint, [user("a"), user("b"), user("c")])
    assert on is not None
    assert on.text.rest == b"hey b\nhey c\n"
    assert go_on(template, first.checkpoint, [user("a"), user("b"), user("Sir")]) is None


def test_what_the_head_writes_and_what_the_request_says_must_be_the_same() -> None:
    counting = ChatTemplate("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", {})
    base = begin(counting, [user("a"), user("b")]).checkpoint
    assert go_on(counting, base, [user("a"), user("b"), user("c")]) is None
    steady = ChatTemplate(STEADY, {})
    base = begin(steady, [user("a"), user("b")]).checkpoint
    assert base is not None
    longer = [user("a"), user("b"), user("c")]
    assert go_on(steady, base, longer) is not None
    assert go_on(steady, base, longer, enable_thinking=False) is None
    assert steady.go_on(base, longer, [tool("other")], add_generation_prompt=True, extra={}) is None


def test_loop_variables_are_those_of_the_whole_conversation() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ [loop.index, loop.index0, loop.first, loop.last,"
        " (loop.previtem or {}).content, (loop.nextitem or {}).content]"
        " | string }}{% for x in [1, 2] %}{{ loop.last }}{% endfor %}{% endfor %}",
        {},
    )
    messages = [user(text) for text in "abcd"]
    on = go_on(template, begin(template, messages[:2]).checkpoint, messages)
    assert on is not None
    assert on.text.rest.decode() == template.render(messages, [], add_generation_prompt=True, extra={})[-len(on.text.rest) :]
    assert on.text.rest.startswith(b"[2, 1, False, False, 'a', 'c']FalseTrue")


def test_qwen25_has_a_system_text_of_its_own_and_merges_results() -> None:
    text = begin(ChatTemplate(QWEN25, {}), [user("hi"), CALLED, *RESULTS]).text.rest.decode()
    assert text.startswith("<|im_start|>system\nYou help at a desk.")
    assert text.count("<|im_start|>user") == 2
    assert "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response><|im_end|>" in text


def test_qwen3_keeps_thoughts_until_the_next_question_and_drops_them_then() -> None:
    template = ChatTemplate(QWEN3, {})
    messages: list[Json] = [SYSTEM, user("hi")]
    first = begin(template, messages)
    messages += [CALLED | {"reasoning_content": "hm"}, *RESULTS]
    working = go_on(template, first.checkpoint, messages)
    assert working is not None
    assert b"<think>\nhm\n</think>" in working.text.rest
    messages += [{"role": "assistant", "content": "It rains."}, user("more")]
    asked = go_on(template, working.checkpoint, messages)
    assert asked is not None
    assert asked.text.skipped == first.checkpoint.n_bytes if first.checkpoint else False
    assert b"<think>" not in asked.text.rest
    assert b"<think>\n\n</think>\n\n" in begin(template, messages, enable_thinking=False).text.rest[-30:]


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ 'a'.split('') }}", "{{ raise_exception('no') }}", "{{ missing.field.other }}"],
)
def test_messages_that_a_template_fails_on_are_the_callers_fault(source: str) -> None:
    template = ChatTemplate(STEADY + source, {})
    with pytest.raises(BadRequest, match="the chat template refuses them"):
        template.render([user("hi")], [], add_generation_prompt=True, extra={})
    with pytest.raises(BadRequest, match="the chat template refuses them"):
        begin(template, [user("hi")])


def test_marks_for_training_on_text_are_only_marks() -> None:
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", {})
    assert template.render([user("a"), user("b")], [], add_generation_prompt=True, extra={}) == "ab"
    assert begin(template, [user("a"), user("b")]).checkpoint is not None


def folder_with(source: Path, target: Path, config: Json, files: dict[str, str]) -> Path:
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    known = json.loads((source / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps(known | config))
    for name, text in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text)
    return target


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]


@pytest.mark.parametrize(
    ("config", "files", "texts"),
    [
        ({"chat_template": "one"}, {}, ("one", "one")),
        ({"chat_template": NAMED}, {}, ("plain", "tools")),
        ({"chat_template": "one"}, {"chat_template.jinja": "file"}, ("file", "file")),
        ({}, {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "more"}, ("file", "more")),
        ({}, {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag"}, ("file", "file")),
    ],
)
def test_templates_are_found_where_transformers_finds_them(
    model_folder: Path, tmp_path: Path, config: Json, files: dict[str, str], texts: tuple[str, str]
) -> None:
    renderer = Renderer.load(folder_with(model_folder, tmp_path, config, files))
    assert (renderer.render([user("hi")], []), renderer.render([user("hi")], [tool()])) == texts


def test_a_file_of_the_config_is_used_instead(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.jinja").write_text("ours")
    assert Renderer.load(model_folder, str(tmp_path / "ours.jinja")).render([user("hi")], [tool()]) == "ours"


@pytest.mark.parametrize(
    ("config", "files", "file", "problem"),
    [
        ({}, {}, "nowhere.jinja", "rollout.agent.chat_template: there is no file"),
        ({}, {"ours.jinja": "{% for %}"}, "ours.jinja", "ours.jinja, line 1"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, {}, "", "none is named 'default'"),
        ({"chat_template": {"default": "x"}}, {}, "", "a string is needed, or a list"),
        ({"chat_template": [{"name": "default"}]}, {}, "", "a string is needed, or a list"),
        ({"chat_template": [*NAMED[1:2], {"name": "default", "template": "{{ x"}]}, {}, "", "chat_template default, line 1"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_by_name(
    model_folder: Path, tmp_path: Path, config: Json, files: dict[str, str], file: str, problem: str
) -> None:
    folder = folder_with(model_folder, tmp_path, config, files)
    with pytest.raises(ValueError, match=problem):
        Renderer.load(folder, str(folder / file) if file else "")
