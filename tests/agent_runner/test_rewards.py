"""The evaluator: tau2's verdicts on the live end state."""

from collections.abc import Callable
from typing import Any

import pytest

from services.agent_runner.domains import Action, DomainBackend, TaskSpec
from services.agent_runner.evaluator import JudgeMissing, Outcome, ToolUse, evaluate, matches

TRANSFER = "transfer_to_human_agents"


def task_with(task: TaskSpec, **criteria: Any) -> TaskSpec:
    return TaskSpec(task.domain, task.raw | {"evaluation_criteria": task.raw["evaluation_criteria"] | criteria})


def reward(telecom: DomainBackend, task: TaskSpec, *uses: ToolUse, texts: tuple[str, ...] = ()) -> Any:
    session = telecom.new_session(task, solo=True)
    for use in uses:
        session.call(use.name, use.arguments)
    return evaluate(telecom, task, Outcome(session, uses, texts))


def test_doing_nothing_earns_nothing_on_any_task_of_base(telecom: DomainBackend):
    assert [reward(telecom, task).reward for task in telecom.tasks("base")] == [0.0] * 114


def test_transferring_at_once_earns_exactly_the_tasks_that_want_it(telecom: DomainBackend):
    transferred = {task.task_id: reward(telecom, task, ToolUse(TRANSFER, {"summary": "?"})).reward for task in telecom.tasks("base")}
    assert sum(transferred.values()) == 20
    wanting = {task.task_id for task in telecom.tasks("base") if task.actions[0].name == TRANSFER}
    assert {task_id for task_id, earned in transferred.items() if earned} == wanting


@pytest.mark.parametrize("split", ["small", "base"])
def test_the_reference_actions_earn_everything(telecom: DomainBackend, split: str):
    for task in telecom.tasks(split):
        info = reward(telecom, task, *(ToolUse(action.name, action.arguments) for action in task.actions))
        assert info.reward == 1.0
        assert set(info.breakdown) == set(task.reward_basis)
        assert all(check.passed for check in info.checks)


def test_an_assertion_that_raises_is_a_failed_check(telecom: DomainBackend, small: list[TaskSpec]):
    bad = {"env_type": "user", "func_name": "assert_service_status", "arguments": {"expected_status": "nonsense"}, "assert_value": True}
    info = reward(telecom, task_with(small[0], env_assertions=[bad]))
    assert (info.reward, info.checks[0].passed) == (0.0, False)
    assert "raised" in info.checks[0].detail


@pytest.mark.parametrize(
    ("compare", "arguments", "expected"),
    [
        (None, {"a": 1, "b": 2}, True),
        (None, {"a": 1}, True),
        (None, {}, True),
        (None, {"a": 1, "b": 3}, False),
        (None, {"a": 1, "b": 2, "c": 3}, False),
        ((), {"a": 9}, True),
        (("a",), {"a": 1, "b": 9}, True),
        (("a",), {"b": 2}, False),
    ],
)
def test_a_call_matches_by_the_arguments_that_count(compare: tuple[str, ...] | None, arguments: dict[str, Any], expected: bool):
    action = Action("assistant", "f", {"a": 1, "b": 2}, compare)
    assert matches(action, ToolUse("f", arguments)) is expected
    assert not matches(action, ToolUse("g", arguments))


def test_communicated_information_is_looked_for_in_single_texts(telecom: DomainBackend, small: list[TaskSpec]):
    task = task_with(small[0], communicate_info=["1100", "Blue"], reward_basis=["COMMUNICATE"])
    assert reward(telecom, task, texts=("It costs $1,100.", "it is BLUE")).reward == 1.0
    assert reward(telecom, task, texts=("It costs $1,100.",)).reward == 0.0
    assert reward(telecom, task_with(small[0], reward_basis=["COMMUNICATE"])).reward == 1.0


def test_the_database_is_compared_with_the_unsynced_reference(telecom: DomainBackend, task_of: Callable[[str], TaskSpec]):
    """As upstream: the reference side never syncs, so even the perfect end state fails where syncing matters."""
    plain = task_with(task_of("[mobile_data_issue]data_saver_mode_on[PERSONA:Easy]"), reward_basis=["DB"])
    assert reward(telecom, plain, *(ToolUse(action.name, action.arguments) for action in plain.actions)).reward == 1.0
    assert reward(telecom, plain).reward == 0.0
    paid = task_with(task_of("[service_issue]overdue_bill_suspension[PERSONA:Easy]"), reward_basis=["DB"])
    assert reward(telecom, paid, *(ToolUse(action.name, action.arguments) for action in paid.actions)).reward == 0.0


def test_what_cannot_be_evaluated_is_an_error_and_no_zero(telecom: DomainBackend, small: list[TaskSpec]):
    with pytest.raises(JudgeMissing, match="NL_ASSERTION"):
        reward(telecom, task_with(small[0], nl_assertions=["was kind"], reward_basis=["NL_ASSERTION"]))
    with pytest.raises(ValueError, match="unknown reward type 'VIBES'"):
        reward(telecom, task_with(small[0], reward_basis=["VIBES"]))
    assert reward(telecom, TaskSpec("telecom", small[0].raw | {"evaluation_criteria": None})).reward == 1.0
