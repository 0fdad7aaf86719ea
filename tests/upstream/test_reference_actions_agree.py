"""The reference actions of every task on upstream's environment and on ours: each result's text, and tau2's own hashes of the end state."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from theirs import Task, environment_of, message_types

from services.agent_runner.domains import DomainBackend, Session, TaskSpec, open_backend

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

BACKENDS = ("tau2", "inspect_evals")
SPLITS = {"airline": "base", "retail": "base", "telecom": "full", "banking_knowledge": "base", "mock": "base"}
SHOWN = 12

Results = list[tuple[str, bool]]


def upstreams(domain: str, task: TaskSpec) -> tuple[Any, Any, Results]:
    """Hashes after the actions as the evaluator makes them, hashes after them as tool calls, and what the calls gave."""
    parsed = Task.model_validate(task.raw)
    state = parsed.initial_state
    environments = []
    for _ in range(2):
        environment = environment_of(domain, parsed)
        environment.set_state(
            initialization_data=state.initialization_data if state else None,
            initialization_actions=state.initialization_actions if state else None,
            message_history=(state.message_history if state else None) or [],
        )
        environments.append(environment)
    evaluated, live = environments
    results: Results = []
    for action in task.actions:
        with suppress(Exception):  # as upstream's evaluator
            evaluated.make_tool_call(tool_name=action.name, requestor=action.requestor, **action.arguments)
        said = live.get_response(message_types.ToolCall(name=action.name, arguments=action.arguments, requestor=action.requestor))
        results.append((said.content, said.error))
    return _hashes(evaluated), _hashes(live), results


def _hashes(environment: Any) -> tuple[str | None, str | None]:
    return environment.get_db_hash(), environment.get_user_db_hash()


def ours(backend: DomainBackend, task: TaskSpec) -> tuple[Any, Any, Results]:
    evaluated, live = (backend.new_session(task, solo=False) for _ in range(2))
    for action in task.actions:
        evaluated.replay(action)
    results = [_result(live, action) for action in task.actions]
    return evaluated.db_hashes(), live.db_hashes(), results


def _result(session: Session, action: Any) -> tuple[str, bool]:
    result = session.call(action.name, action.arguments, action.requestor)
    return result.content, result.error


@pytest.mark.parametrize("domain", SPLITS)
def test_reference_actions_end_in_the_same_state(domain: str, record_property: Callable[[str, object], None]) -> None:
    problems: list[str] = []
    tasks = open_backend(domain, backend="tau2").tasks(SPLITS[domain])
    for task in tasks:
        theirs = upstreams(domain, task)
        for name in BACKENDS:
            found = ours(open_backend(domain, backend=name), task)
            for what, left, right in zip(("end state", "end state of the calls", "results"), theirs, found, strict=True):
                if left != right:
                    problems.append(f"{task.task_id} on {name}: {what}: upstream {str(left)[:400]}, ours {str(right)[:400]}")
    record_property("episodes", len(tasks) * len(BACKENDS))
    record_property("end_states", 2 * len(tasks) * len(BACKENDS))
    record_property("mismatches", len(problems))
    record_property("tasks", [f"{domain}/{task.task_id}" for task in tasks])
    assert not problems, f"{len(problems)} mismatches:\n" + "\n".join(problems[:SHOWN])


@pytest.mark.parametrize("domain", [*SPLITS, "telecom-workflow"])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_tools_and_policies_are_upstreams(domain: str, backend_name: str) -> None:
    backend = open_backend(domain, backend=backend_name)
    for task in list(backend.tasks("base"))[::5]:
        environment = environment_of(domain, Task.model_validate(task.raw))
        assert backend.policy(task, solo=False) == environment.get_policy()
        assert backend.tool_schemas(task, solo=False) == [tool.openai_schema for tool in environment.get_tools()]
        user_tools = [] if environment.user_tools is None else environment.get_user_tools(include=task.user_tools)
        assert backend.user_tool_schemas(task) == [tool.openai_schema for tool in user_tools]
