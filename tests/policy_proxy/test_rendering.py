"""Text and tokens of the policy: the same as transformers makes, with the long common part encoded once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conversation_strategies import conversations
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from proxy_helpers import SYSTEM, call_text, tool, user
from template_samples import samples

from services.policy_proxy.chat.messages import read_messages
from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.prompts.template import ChatTemplate

CONVERSATION = [
    {"role": "system", "content": "Line one.\nÜnïcödé and <b>markup</b> & 'quotes'. " * 80},
    user("hello {{ braces }} <|im_start|>"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Zürich", "n": [1, 2.5, null]}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": '{"weather": "<rain>"}'},
    {"role": "assistant", "content": "  It rains. ", "reasoning_content": "hm"},
    user("日本 🙂"),
]

PEER = """
import importlib.util, json, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)  # seconds faster
from transformers import AutoTokenizer
folder, messages, tools, cases = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
for message in messages:
    for call in message.get("tool_calls", []):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
texts = [
    tokenizer.apply_chat_template(messages, chat_template=template, tools=tools, tokenize=False, add_generation_prompt=prompted, **extra)
    for template, messages, tools, prompted, extra in cases
]
print(json.dumps([text, tokenizer.encode(text, add_special_tokens=False), texts]))
"""


def random_cases() -> list[Any]:
    """(template, messages, tools or null, add_generation_prompt, chat_template_kwargs), the same in every run."""
    cases: list[Any] = []

    @settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @given(conversations(), st.booleans(), st.booleans(), st.sampled_from([{}, {"enable_thinking": False}]))
    def collect(turns: list[list[Any]], with_tools: bool, prompted: bool, extra: dict[str, Any]) -> None:
        messages = [message for turn in turns for message in turn]
        cases.extend([source, messages, [tool()] if with_tools else None, prompted, extra] for source in samples().values())

    collect()
    return cases


async def test_text_and_ids_are_those_of_transformers(model_folder: Path, renderer: Renderer) -> None:
    tools = [tool(), tool("línea")]
    cases = random_cases()
    sent = json.dumps([str(model_folder), CONVERSATION, tools, cases])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs on this loop
        [sys.executable, "-c", PEER], input=sent, capture_output=True, text=True, env=environment, timeout=100, check=True
    )
    text, ids, texts = json.loads(done.stdout.splitlines()[-1])
    ours = renderer.render(read_messages(CONVERSATION), tools)
    assert ours == text
    assert (await renderer.encode(ours)).tolist() == ids
    templates = {source: ChatTemplate(source, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}) for source in samples().values()}
    for (source, messages, with_tools, prompted, extra), theirs in zip(cases, texts, strict=True):
        assert templates[source].render(messages, with_tools or [], add_generation_prompt=prompted, extra=extra) == theirs


async def test_cutting_at_turns_changes_no_token(renderer: Renderer) -> None:
    text = renderer.render(read_messages(CONVERSATION), [tool()])
    whole = renderer._ids(text)
    assert (await renderer.encode(text)).tolist() == whole.tolist()
    assert (await renderer.encode(text)).tolist() == whole.tolist()
    assert renderer.decode(whole.tolist()) == text


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_text_of_any_ids_is_that_of_the_tokenizer(renderer: Renderer, data: st.DataObject) -> None:
    """Also where characters are cut, bytes are no character at all, and ids are no token."""
    ids = data.draw(st.lists(st.integers(0, renderer.vocab_size + 3), max_size=60))
    assert renderer._is_byte_level
    assert renderer.decode(ids) == renderer._tokenizer.decode(ids, skip_special_tokens=False)
    assert renderer.decode(ids) == b"".join(map(renderer.token_bytes, ids)).decode(errors="replace")


def test_tools_are_serialised_by_value_not_by_name(renderer: Renderer) -> None:
    first, second = tool(), tool()
    second["function"]["description"] = "Something else."
    texts = [renderer.render([SYSTEM, user("hi")], [item]) for item in (first, second, first)]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("missing", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_an_incomplete_model_folder_is_refused_by_name(model_folder: Path, tmp_path: Path, missing: str) -> None:
    for file in model_folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=missing):
        Renderer.load(tmp_path)


def test_a_broken_template_is_refused_with_its_line(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("fine\n{% if %}")
    with pytest.raises(ValueError, match="line 2"):
        Renderer.load(tmp_path)


def test_call_text_is_what_the_template_writes(renderer: Renderer) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up", "arguments": {"city": "Paris"}}}]}
    rendered = renderer.render([user("hi"), message], [], add_generation_prompt=False)
    assert rendered.endswith(f"assistant\n{call_text('look_up', city='Paris')}<|im_end|>\n")
