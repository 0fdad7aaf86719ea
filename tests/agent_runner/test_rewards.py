"""The evaluator: tau2's verdicts on the live end state."""

from collections.abc import Callable
from typing import Any

import pytest

from services.agent_runner.conversation.messages import Message, ToolCall
from services.agent_runner.domains import Action, DomainBackend, TaskSpec
from services.agent_runner.reward.evaluator import Outcome, References, ToolUse, basis_of, evaluate, judged, matches, needs_judge
from services.common.wire.rollouts import Check

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
        assert all(check.passed for check in info.checks if check.counts)


def test_an_assertion_that_raises_is_a_failed_check(telecom: DomainBackend, small: list[TaskSpec]):
    bad = {"env_type": "user", "func_name": "assert_service_status", "arguments": {"expected_status": "nonsense"}, "assert_value": True}
    info = reward(telecom, task_with(small[0], env_assertions=[bad]))
    (check,) = [check for check in info.checks if check.kind == "ENV_ASSERTION"]
    assert (info.reward, check.passed, check.counts) == (0.0, False, True)
    assert "raised" in check.detail


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


def test_an_unknown_reward_type_is_an_error_and_no_zero(telecom: DomainBackend, small: list[TaskSpec]):
    with pytest.raises(ValueError, match="unknown reward type 'VIBES'"):
        reward(telecom, task_with(small[0], reward_basis=["VIBES"]))


def test_a_task_without_criteria_is_always_right(telecom: DomainBackend, small: list[TaskSpec]):
    assert reward(telecom, TaskSpec("telecom", small[0].raw | {"evaluation_criteria": None})).reward == 1.0


def test_a_task_that_names_no_reward_type_is_always_right(telecom: DomainBackend, small: list[TaskSpec]):
    assert reward(telecom, task_with(small[0], reward_basis=[])).reward == 1.0
    assert task_with(small[0], reward_basis=None).reward_basis == ("DB", "COMMUNICATE")


def test_what_is_not_in_the_basis_is_checked_but_does_not_count(telecom: DomainBackend, small: list[TaskSpec]):
    info = reward(telecom, task_with(small[0], communicate_info=["42"], reward_basis=["COMMUNICATE"]), texts=("42",))
    assert (info.reward, info.breakdown) == (1.0, {"COMMUNICATE": 1.0})
    assert {check.kind for check in info.checks} == {"DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE"}
    assert {check.kind for check in info.checks if check.counts} == {"COMMUNICATE"}
    assert not all(check.passed for check in info.checks)


def test_only_a_judge_decides_statements_and_only_where_it_matters(telecom: DomainBackend, small: list[TaskSpec]):
    task = task_with(small[0], nl_assertions=["was kind"], communicate_info=["42"], reward_basis=["COMMUNICATE", "NL_ASSERTION"])
    open_question = reward(telecom, task, texts=("42",))
    assert (open_question.pending, open_question.reward, open_question.breakdown) == (["NL_ASSERTION"], 1.0, {"COMMUNICATE": 1.0})
    for kind in (True, False):
        info = judged(open_question, [Check(name="nl_assertion", passed=kind, kind="NL_ASSERTION")])
        assert (info.reward, info.breakdown["NL_ASSERTION"], info.pending) == (float(kind), float(kind), [])
    moot = reward(telecom, task)
    assert (moot.pending, moot.reward, moot.breakdown) == ([], 0.0, {"COMMUNICATE": 0.0})
    assert "not asked" in moot.note
    nothing_to_judge = reward(telecom, task_with(small[0], reward_basis=["NL_ASSERTION"]))
    assert (nothing_to_judge.pending, nothing_to_judge.breakdown) == ([], {"NL_ASSERTION": 1.0})


@pytest.mark.parametrize(
    ("domain", "basis", "variant", "expected"),
    [
        ("retail", ["DB", "NL_ASSERTION"], "db+judge", ("DB", "NL_ASSERTION")),
        ("retail", ["DB", "NL_ASSERTION"], "db+communicate", ("DB", "COMMUNICATE")),
        ("retail", ["DB", "NL_ASSERTION"], "db", ("DB",)),
        ("retail", ["DB", "COMMUNICATE"], "db+judge", ("DB", "NL_ASSERTION")),
        ("retail", None, "db", ("DB",)),
        ("retail", ["DB"], "db+judge", ("DB",)),
        ("airline", ["DB", "COMMUNICATE"], "db", ("DB", "COMMUNICATE")),
    ],
)
def test_retails_variant_replaces_the_part_about_the_conversation(domain: str, basis: list[str] | None, variant: Any, expected: Any):
    task = TaskSpec(domain, {"id": "x", "evaluation_criteria": {"actions": [], "reward_basis": basis, "nl_assertions": ["a"]}})
    assert basis_of(task, variant) == expected
    assert needs_judge(task, expected) is ("NL_ASSERTION" in expected)


def test_each_reference_end_state_is_computed_once(telecom: DomainBackend, small: list[TaskSpec]):
    references = References(remembered=3)
    for task in [*small[:4], *small[1:4]]:
        evaluate(telecom, task, Outcome(telecom.new_session(task, solo=True), [], []), references=references)
    assert [digest for _, _, digest in references.known] == [task.digest for task in small[1:4]]
    known = references.known[telecom.source, "telecom", small[1].digest]
    assert references.of(telecom, small[1]) is known


def test_an_outcome_counts_the_calls_of_both_sides_and_what_the_agent_said(telecom: DomainBackend, small: list[TaskSpec]):
    session = telecom.new_session(small[0], solo=False)
    messages = [
        Message("assistant", "Hi"),
        Message("user", None, (ToolCall("u", "check", {"a": 1}),)),
        Message("tool", "x", requestor="user", tool_call_id="u"),
        Message("assistant", "beside a call", (ToolCall("c", "look", {}),)),
        Message("assistant", "  "),
    ]
    outcome = Outcome.of(session, messages)
    assert list(outcome.tool_uses) == [ToolUse("check", {"a": 1}), ToolUse("look", {})]
    assert list(outcome.agent_texts) == ["Hi", "beside a call"]
    assert outcome.end_state == session.fingerprint()
