"""The chat templates for the model behind the user: Qwen's format, tools included, and never a thought."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from user_fakes import GREETING, TOOLS, Json, agent, ran, turn, user

from services.user_simulator.prompt import prompt

FOLDER = Path(__file__).parents[2] / "configs" / "chat_templates"
NAMES = ("qwen2.5_nonthinking", "qwen3_nonthinking")
TOOL = TOOLS[0]
PREAMBLE = (
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
POSTAMBLE = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def render(name: str, messages: list[Json], tools: list[Json] | None = None) -> str:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def fail(why: str) -> Any:
        raise jinja2.TemplateError(why)

    environment.globals["raise_exception"] = fail
    template = environment.from_string((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    return template.render(
        messages=[{"content": None, "tool_calls": None} | one for one in messages], tools=tools, add_generation_prompt=True
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_users_chat_with_its_tools_renders_as_the_model_was_trained(name: str):
    chat = prompt(turn(GREETING, user("hi"), agent("look"), *ran("toggle_data", "ON ümlaut", mode="x"), user("it is on"), agent("good")))
    rendered = render(name, chat, [TOOL])
    think = "<think>\n\n</think>\n\n" if name.startswith("qwen3") else ""
    assert rendered == (
        "<|im_start|>system\n# Rules\n\n<scenario>\nInstructions:\n\tDomain: telecom\n</scenario>\n\n# Tools\n\n"
        f"{PREAMBLE}{json.dumps(TOOL)}{POSTAMBLE}<|im_end|>\n"
        "<|im_start|>user\nHi! How can I help you today?<|im_end|>\n"
        "<|im_start|>assistant\nhi<|im_end|>\n"
        "<|im_start|>user\nlook<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "toggle_data", "arguments": {"mode": "x"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nON ümlaut\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nit is on<|im_end|>\n"
        "<|im_start|>user\ngood<|im_end|>\n"
        f"<|im_start|>assistant\n{think}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_several_calls_share_a_turn_and_so_do_their_results(name: str):
    calls = [{"function": {"name": one, "arguments": {"é": 1}}} for one in ("f", "g")]
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "ok", "tool_calls": calls},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    assert (
        '<|im_start|>assistant\nok\n<tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g", "arguments": {"é": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    ) in render(name, messages)


@pytest.mark.parametrize("name", NAMES)
def test_thoughts_in_the_history_are_left_out_and_there_is_no_default_system_text(name: str):
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nsaid"}]
    rendered = render(name, messages)
    assert rendered.startswith("<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\nsaid<|im_end|>\n<|im_start|>assistant\n")
    assert "hm" not in rendered


def test_the_two_templates_differ_in_their_head_and_in_how_an_answer_begins():
    bodies = [(FOLDER / f"{name}.jinja").read_text(encoding="utf-8").split("-#}", 1)[1].splitlines() for name in NAMES]
    different = [pair for pair in zip(*bodies, strict=True) if pair[0] != pair[1]]
    assert different == [("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}")]


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_role_is_refused(name: str):
    with pytest.raises(jinja2.TemplateError, match="role developer"):
        render(name, [{"role": "developer", "content": "x"}])
