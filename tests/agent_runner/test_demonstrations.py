"""The scripted demonstrator: look before fix, reward 1 when complete, reward 0 when it gives up or skips."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from services.agent_runner.conversation.demonstrator import CHECKS, Demonstrator, Quality, Step, UnknownTicket, script, ticket_kind
from services.agent_runner.domains import DomainBackend, TaskSpec, ToolResult
from services.agent_runner.records.corpus import conversation, conversations
from services.agent_runner.reward.evaluator import Outcome, ToolUse, evaluate
from services.common.config import ExperimentConfig


def played(telecom: DomainBackend, task: TaskSpec, steps: Sequence[Step]) -> tuple[float, list[ToolResult]]:
    session = telecom.new_session(task, solo=True)
    results = [session.call(step.name, step.arguments) for step in steps]
    uses = [ToolUse(step.name, step.arguments) for step in steps]
    return evaluate(telecom, task, Outcome(session, uses, [])).reward, results


@pytest.mark.parametrize(("quality", "reward"), [("complete", 1.0), ("gives_up", 0.0), ("skips_step", 0.0)])
def test_each_quality_earns_what_it_says(telecom: DomainBackend, quality: Quality, reward: float):
    tasks = [*telecom.tasks("base"), *telecom.tasks("full")[::23]]
    outcomes = [played(telecom, task, script(task, quality, seed)) for seed, task in enumerate(tasks)]
    assert Counter(earned for earned, _ in outcomes) == {reward: len(tasks)}
    assert not any(result.error for _, results in outcomes for result in results)


def test_every_needed_step_of_small_is_needed(telecom: DomainBackend, small: list[TaskSpec]):
    for task in small:
        steps = script(task, "complete", 0)
        for index, step in enumerate(steps):
            if step.needed:
                assert played(telecom, task, [*steps[:index], *steps[index + 1 :]])[0] == 0.0, (task.task_id, step.name)


def test_what_comes_next_follows_from_the_ticket_and_the_results_so_far(telecom: DomainBackend):
    """But for the dozen tasks of `full` whose SIM is both out and locked: the phone shows a missing SIM only."""
    hidden = [task for task in telecom.tasks("full") if "lock_sim_card" in task.task_id and "unseat_sim_card" in task.task_id]
    assert len(hidden) == 12
    ids = {task.task_id for task in hidden}
    following: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
    tasks = [task for task in telecom.tasks("full") if task.task_id not in ids]
    for task in [*telecom.tasks("base"), *(task for task in tasks if "service_issue" in task.task_id), *tasks[::9]]:
        if task.task_id in ids:
            continue
        steps = script(task, "complete", 0)
        seen = (task.ticket or "",)
        for step, result in zip(steps, played(telecom, task, steps)[1], strict=True):
            following[seen].add((step.name, json.dumps(step.arguments)))
            seen = (*seen, step.name, result.content)
        following[seen].add(("done", "{}"))
    assert {len(options) for options in following.values()} == {1}


def test_a_fix_comes_only_after_a_check_of_its_ticket(telecom: DomainBackend):
    looks = {(check.name, json.dumps(check.arguments)) for checks in CHECKS.values() for check in checks}
    for task in telecom.tasks("base"):
        steps = script(task, "complete", 0)
        assert [step.name for step in steps[:1]] == ["get_customer_by_phone"]
        fixes = Counter(step.name for step in steps if (step.name, json.dumps(step.arguments)) not in looks)
        assert fixes == Counter(action.name for action in task.actions)


def test_messages_carry_one_call_and_no_text_and_depend_on_the_seed_alone(small: list[TaskSpec]):
    def messages(seed: int) -> list[dict[str, Any]]:
        demonstrator = Demonstrator(small[2], "gives_up", seed)
        return [demonstrator.next_message(None) for _ in range(12)]

    assert messages(1) == messages(1)
    assert len({json.dumps(messages(seed)) for seed in range(12)}) > 2
    for message in messages(3):
        assert message["content"] is None
        assert len(message["tool_calls"]) == 1
    assert messages(3)[-1]["tool_calls"][0]["function"]["name"] == "done"


def test_other_tickets_are_refused():
    task = TaskSpec("telecom", {"id": "x", "ticket": "My cat is sick.", "evaluation_criteria": {"actions": []}})
    with pytest.raises(UnknownTicket, match="task x"):
        ticket_kind(task)


def test_the_corpus_holds_whole_conversations_and_none_of_the_excluded_split(telecom: DomainBackend, small: list[TaskSpec]):
    config = ExperimentConfig.model_validate({"sft": {"enabled": True}})
    records = list(conversations(config, limit=12, seed=4))
    assert records == list(conversations(config, limit=12, seed=4))
    assert len(records) == 12
    for record in records:
        assert len(record["tools"]) == 44
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["system", *["assistant", "tool"] * ((len(roles) - 2) // 2), "assistant"]
    everything = {message["content"] for record in records for message in record["messages"] if message["role"] == "system"}
    assert all("<ticket>" in text for text in everything)
    with pytest.raises(ValueError, match=r"sft\.dataset"):
        list(conversations(ExperimentConfig.model_validate({"sft": {"dataset": "telecom"}}), limit=1, seed=0))


@pytest.mark.parametrize("quality", get_args(Quality))
def test_a_corpus_conversation_is_the_demonstration(telecom: DomainBackend, small: list[TaskSpec], quality: Quality):
    names = [
        message["tool_calls"][0]["function"]["name"]
        for message in conversation(telecom, small[0], quality, 7)["messages"]
        if message["role"] == "assistant"
    ]
    assert names == [*(step.name for step in script(small[0], quality, 7)), "done"]
