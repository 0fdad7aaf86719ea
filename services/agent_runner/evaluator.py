"""Owns the reward: tau2's evaluator on the live end state of a session (the same verdicts as replaying the conversation, at no cost).

The reward is the product over the task's reward basis. An assertion that raises is a failed check of the policy's, where upstream aborts
the evaluation and drops the episode. Refuses to guess: a task that needs a judge raises `JudgeMissing`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.agent_runner.domains import Action, DomainBackend, EnvCall, Session, TaskSpec
from services.common.wire.rollouts import Check, RewardInfo


class JudgeMissing(Exception):
    """The task's reward needs an LLM judge and none is configured."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call that somebody made in the episode."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the evaluator sees of an episode that ended by the agent's or the user's stop."""

    session: Session
    tool_uses: Sequence[ToolUse]
    agent_texts: Sequence[str]


def premature(task: TaskSpec, reason: str) -> RewardInfo:
    """The reward of an episode that neither side ended: 0 without a breakdown, as in tau2."""
    return RewardInfo(reward=0.0, basis=list(task.reward_basis), note=f"ended prematurely: {reason}")


def evaluate(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> RewardInfo:
    """The reward of a finished episode with every check behind it. Raises `JudgeMissing`, and ValueError for an unknown reward type."""
    if task.criteria is None:
        return RewardInfo(reward=1.0, basis=[], note="the task has no evaluation criteria")
    checks: list[Check] = []
    breakdown: dict[str, float] = {}
    for kind in task.reward_basis:
        if kind not in CHECKERS:
            raise ValueError(f"task {task.task_id}: unknown reward type {kind!r}")
        found = CHECKERS[kind](backend, task, outcome)
        checks.extend(found)
        breakdown[kind] = float(all(check.passed for check in found))
    reward = 1.0
    for factor in breakdown.values():
        reward *= factor
    return RewardInfo(reward=reward, basis=list(task.reward_basis), breakdown=breakdown, checks=checks)


def matches(action: Action, use: ToolUse) -> bool:
    """Whether a tool call counts as a reference action (upstream `Action.compare_with_tool_call`).

    Without ``compare_args`` the arguments that the *call* has are compared, so a correct subset matches.
    """
    if action.name != use.name:
        return False
    keys = set(use.arguments) if action.compare_args is None else set(action.compare_args)
    left = {key: value for key, value in use.arguments.items() if key in keys}
    return left == {key: value for key, value in action.arguments.items() if key in keys}


def _db(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> list[Check]:
    if not task.has_end_state:
        return [Check(name="db", passed=True, detail="the task names no end state")]
    reference = backend.new_session(task, solo=False)
    for action in task.actions:
        reference.replay(action)
    agent, user = (ours == theirs for ours, theirs in zip(outcome.session.fingerprint(), reference.fingerprint(), strict=True))
    return [Check(name="agent_db", passed=agent), Check(name="user_db", passed=user)]


def _assertions(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> list[Check]:
    return [_assertion(outcome.session, assertion) for assertion in task.assertions]


def _assertion(session: Session, assertion: EnvCall) -> Check:
    name = f"{assertion.env_type}.{assertion.name}"
    try:
        value = session.run(assertion)
    except Exception as error:  # noqa: BLE001 - boundary to the domain's code: an assertion that raises is a state that was not reached
        return Check(name=name, passed=False, detail=f"raised: {error}")
    return Check(name=name, passed=value == assertion.assert_value, detail=f"{assertion.arguments} is {value}")


def _actions(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> list[Check]:
    return [
        Check(name=f"action.{action.name}", passed=any(matches(action, use) for use in outcome.tool_uses), detail=str(action.arguments))
        for action in task.actions
    ]


def _communicated(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> list[Check]:
    texts = [text.lower().replace(",", "") for text in outcome.agent_texts]
    return [Check(name="communicate", passed=any(info.lower() in text for text in texts), detail=info) for info in task.communicate_info]


def _judged(backend: DomainBackend, task: TaskSpec, outcome: Outcome) -> list[Check]:
    if task.nl_assertions:
        raise JudgeMissing(f"task {task.task_id}: NL_ASSERTION is in its reward basis and no judge is configured")
    return []


CHECKERS: dict[str, Callable[[DomainBackend, TaskSpec, Outcome], list[Check]]] = {
    "DB": _db,
    "ENV_ASSERTION": _assertions,
    "ACTION": _actions,
    "COMMUNICATE": _communicated,
    "NL_ASSERTION": _judged,
}
