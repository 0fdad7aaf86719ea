"""What only banking has: retrieval variants with their prompts and search tools, and a user's tool that is graded as if it had not run."""

import asyncio
import re
from typing import Any, get_args

import pytest
from ours import play_ours
from played import differences
from scripted import Script, call, close, order
from theirs import Task, environment_of, message_types, play

from services.agent_runner.domains import Retrieval, TaskSpec, open_backend

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

BACKENDS = ("tau2", "inspect_evals")
DOMAIN = "banking_knowledge"
QUERIES = ("credit card", "how to close an account", "cash back dispute|chargeback", "(", "  ", "zzzz", "[Aa]nnual fee", "$5", "")
TIMING = re.compile(r"\[Timing: [^\]]*\]\Z")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("retrieval", get_args(Retrieval))
def test_retrieval_variants_are_upstreams(retrieval: Retrieval, backend: Any) -> None:
    opened = open_backend(DOMAIN, backend, retrieval=retrieval)
    for task in list(opened.tasks("base"))[::20]:
        environment = environment_of(DOMAIN, Task.model_validate(task.raw), retrieval=retrieval)
        assert opened.policy(task, solo=False) == environment.get_policy()
        assert opened.tool_schemas(task, solo=False) == [tool.openai_schema for tool in environment.get_tools()]
        session = opened.new_session(task, solo=False)
        for query in QUERIES:
            for name, argument in (("KB_search", "query"), ("grep", "pattern")):
                theirs = environment.get_response(message_types.ToolCall(name=name, arguments={argument: query}))
                ours = session.call(name, {argument: query})
                assert (ours.content, ours.error) == (TIMING.sub("[Timing: retrieval=0ms, total=0ms]", theirs.content), theirs.error)


def cards(task: TaskSpec) -> list[str]:
    data = task.initialization_data.get("agent_data") or {}
    return list((data.get("credit_card_accounts") or {}).get("data") or {}) or ["cc_unknown"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_users_look_up_is_graded_as_if_it_had_not_run(backend: Any) -> None:
    opened = open_backend(DOMAIN, backend)
    found = []
    for task in list(opened.tasks("base"))[::8]:
        given = call(("give_discoverable_user_tool", {"discoverable_tool_name": "get_card_last_4_digits"}))
        look_up = order(*(("get_card_last_4_digits", {"credit_card_account_id": card}) for card in cards(task)[:2]))
        script = Script([given, look_up, look_up, close()])
        theirs = play(DOMAIN, task.raw, script, solo=False)
        ours, _, _ = asyncio.run(play_ours(opened, task, script, solo=False))
        assert differences(theirs, ours) == [], task.task_id
        found += [message["content"] for message in ours.messages if message["role"] == "tool"]
    assert any("Last 4 digits of card" in content for content in found), "the look-up must have worked somewhere"
