"""Whatever agents do, captured ids are what servers saw, nothing known is sent as new, and versions only grow along a branch.

One proxy with two templates: conversations with tools are written as Qwen3 writes them, others as Qwen2.5 does.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from proxy_helpers import ProxyUnderTest, SessionClient, make_model_folder, running_proxy, tool, user
from proxy_servers import wait_until
from template_samples import QWEN3, QWEN25

from services.common.wire.calls import CallRecord, rows_of
from services.policy_proxy.prompts.rendering import Renderer

Json = dict[str, Any]
END = "<|im_end|>"
TOOLS = [tool(), tool("fix")]

PIECES = st.sampled_from(
    ["hello", " world", "\n", "  ", "é", "日本", "🙂", "<", "<think>", "</think>", "<tool_call>", "{", '"name"', "ok."]
)
FREE = st.lists(PIECES, max_size=5).map("".join)
THOUGHTS = st.sampled_from(["", "<think>\nhm\n</think>\n\n", "<think>never ended "])
CALLS = st.builds(
    lambda name, value, indent: f"<tool_call>\n{json.dumps({'name': name, 'arguments': {'x': value}}, indent=indent)}\n</tool_call>",
    st.sampled_from(["look_up", "fix"]),
    st.sampled_from([1, 2.5, "é", "", None]),
    st.sampled_from([None, 1]),
)
MALFORMED = st.sampled_from(['<tool_call>\n{"name": "fix", "arg', "<tool_call>\n[]\n</tool_call>", "<tool_call></tool_call>"])
SPOKEN = st.builds(
    lambda *parts: "".join(parts), THOUGHTS, FREE, st.one_of(st.just(""), CALLS, MALFORMED), st.sampled_from([END, END, END, ""])
)


@dataclass(frozen=True)
class Step:
    """One call: of which agent, what it does to its history before, what is said, and what happens meanwhile."""

    agent: int
    history: str
    said: str
    reply: str
    happens: str
    thinking: bool | None


STEPS = st.builds(
    Step,
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from(["as is", "as is", "as is", "as is", "cut", "edited", "answer edited"]),
    SPOKEN,
    FREE,
    st.sampled_from(
        ["nothing", "nothing", "nothing", "nothing", "again", "same id", "sdk retry", "cut by length", "update", "late update"]
    ),
    st.sampled_from([None, None, False]),
)


@dataclass
class Agents:
    """A session with an agent and two of its sub-agents; the second one has no tools."""

    proxy: ProxyUnderTest
    session: SessionClient
    version: int
    histories: list[list[Json]] = field(
        default_factory=lambda: [[{"role": "system", "content": f"agent {n}"}, user("hi")] for n in range(3)]
    )
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def take(self, step: Step) -> None:
        messages = self.histories[step.agent]
        _rewrite(messages, step)
        self.proxy.says(step.said)
        message = self._call(step, messages)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": step.reply} for call in message.get("tool_calls") or []]
        asks = [] if results and step.thinking is None else [user(step.reply)]
        self.histories[step.agent] = [*messages, message, *results, *asks]

    def _call(self, step: Step, messages: list[Json]) -> Json:
        body: Json = {} if step.agent == 2 else {"tools": TOOLS}
        if step.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": step.thinking}
        if step.happens == "cut by length":
            body["max_tokens"] = 2
        if step.happens in ("update", "late update"):
            return self._call_through_update(0 if step.happens == "update" else 1, messages, body)
        headers = {"x-stainless-retry-count": "1"} if step.happens == "sdk retry" else {}
        call_id = f"id-{self.session.session_id}-{len(self.proxy.engine.exchanges)}" if step.happens == "same id" else ""
        said = self.session.say(messages, call_id=call_id, **body)
        if step.happens in ("again", "same id", "sdk retry"):
            again = self.session.say(messages, call_id=call_id, headers=headers, **body)
            assert (again == said) or step.happens == "again"
        return said

    def _call_through_update(self, after: int, messages: list[Json], body: Json) -> Json:
        """New weights come when so many tokens have been made."""
        engine = self.proxy.engine
        engine.stall_after = after
        before = len(engine.exchanges)
        call: Future[Json] = self.pool.submit(self.session.say, messages, **body)
        wait_until(lambda: call.done() or any(len(item.output_ids) >= after for item in engine.exchanges[before:]), what="tokens")
        self.version += 1
        assert self.proxy.post_weights(self.version).status_code == 200
        engine.stall_after = -1
        return call.result(timeout=60)


def _rewrite(messages: list[Json], step: Step) -> None:
    if step.history == "cut":
        del messages[2:]
    elif step.history == "edited":
        messages[1] = user(step.reply)
    elif step.history == "answer edited":
        at = [index for index, message in enumerate(messages) if message["role"] == "assistant" and "tool_calls" not in message]
        if at:
            messages[at[-1]] = messages[at[-1]] | {"content": step.reply + "?"}


@pytest.fixture(scope="module")
def two_templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyUnderTest]:
    folder = make_model_folder(tmp_path_factory.mktemp("two-templates"))
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": QWEN25}, {"name": "tool_use", "template": QWEN3}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with running_proxy(folder, Renderer.load(folder), Path(tmp_path_factory.mktemp("trial"))) as proxy:
        proxy.start()
        yield proxy


# Shrinking a failure would take minutes over HTTP; the steps are few enough to read.
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(steps=st.lists(STEPS, min_size=3, max_size=7))
def test_random_agents(two_templates: ProxyUnderTest, steps: list[Step]) -> None:
    proxy = two_templates
    proxy.reset()
    session = proxy.open()
    agents = Agents(proxy, session, int(proxy.engine.version))
    with agents.pool:
        for step in steps:
            agents.take(step)
    records = proxy.assert_token_exact(session)
    assert_nothing_known_is_new(records, proxy.renderer.eos_id)
    assert_versions_grow(records)
    assert proxy.metric("branches_total") == n_branches(records)
    assert len(records) == len(steps) + sum(step.happens == "again" for step in steps)


def assert_nothing_known_is_new(records: list[CallRecord], eos_id: int) -> None:
    """A prompt extends the longest call that it starts with, so no token of such a call is among its new ones."""
    paths: dict[str, list[int]] = {}
    for row, record in zip(rows_of(records), records, strict=True):
        prompt = row.ids.tolist()[: len(row.ids) - row.n_output]
        reused = len(prompt) - len(record.prompt) // 4
        assert reused == (0 if record.parent is None else len(paths[record.parent]))
        for path in paths.values():
            assert path[-1] != eos_id or len(path) <= reused or prompt[: len(path)] != path
        paths[record.call_id] = row.ids.tolist()


def assert_versions_grow(records: list[CallRecord]) -> None:
    last: dict[str | None, int] = {None: 0}
    for record in records:
        versions = [last[record.parent], *record.output_versions().tolist()]
        assert versions == sorted(versions)
        last[record.call_id] = versions[-1]


def n_branches(records: list[CallRecord]) -> int:
    """Calls that left a path: all children of a call (or of nothing) but the first."""
    return len(records) - len({record.parent for record in records})
