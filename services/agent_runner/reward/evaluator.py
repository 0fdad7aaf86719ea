"""Owns the reward: tau2's evaluator on the live end state of a session (the same verdicts as replaying the conversation, at no cost).

The reward is the product over the reward basis; what is not in the basis is checked as well where that costs nothing, and marked as not
counting. An assertion that raises is a failed check of the policy's, where upstream aborts the evaluation and drops the episode. Refuses to
guess: what only a judge can decide stays pending here.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from services.agent_runner.conversation.messages import Message
from services.agent_runner.domains import Action, DomainBackend, EnvCall, Session, TaskSpec
from services.common.wire.rollouts import Check, RewardInfo

RetailReward = Literal["db", "db+communicate", "db+judge"]
Fingerprint = tuple[str, str]

JUDGED = "NL_ASSERTION"
RETAIL_PARTS: dict[RetailReward, tuple[str, ...]] = {"db": (), "db+communicate": ("COMMUNICATE",), "db+judge": (JUDGED,)}
"""What stands beside the other reward types of a retail task in each variant."""


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
    end_state: Fingerprint | None = None
    """The session's fingerprint, where it is known already."""

    @classmethod
    def of(cls, session: Session, messages: Sequence[Message]) -> "Outcome":
        """The outcome of a conversation in a session. Calls of both sides count, and text beside calls counts as said (as upstream)."""
        return cls(
            session=session,
            tool_uses=[ToolUse(call.name, call.arguments) for message in messages for call in message.tool_calls],
            agent_texts=[message.content or "" for message in messages if message.role == "assistant" and message.has_text],
            end_state=session.fingerprint(),
        )


@dataclass(slots=True)
class References:
    """End states of the tasks' reference actions: each is computed once, 150 bytes a task."""

    remembered: int = 16384
    known: OrderedDict[tuple[str, str, str], Fingerprint] = field(default_factory=OrderedDict[tuple[str, str, str], Fingerprint])

    def of(self, backend: DomainBackend, task: TaskSpec) -> Fingerprint:
        """The fingerprint that DB compares with. The reference runs with a user's tools (never solo) and is never synced, as upstream's."""
        key = (backend.source, task.domain, task.digest)
        if key not in self.known:
            session = backend.new_session(task, solo=False)
            for action in task.actions:
                session.replay(action)
            self.known[key] = session.fingerprint()
            if len(self.known) > self.remembered:
                self.known.popitem(last=False)
        return self.known[key]


def basis_of(task: TaskSpec, retail_reward: RetailReward = "db+judge") -> tuple[str, ...]:
    """The reward types whose factors are multiplied. Retail's conversation part is a choice of the experiment's."""
    basis = task.reward_basis
    if task.domain != "retail" or not {"COMMUNICATE", JUDGED} & set(basis):
        return basis
    return (*(kind for kind in basis if kind not in ("COMMUNICATE", JUDGED)), *RETAIL_PARTS[retail_reward])


def needs_judge(task: TaskSpec, basis: Sequence[str]) -> bool:
    """Whether the task's reward can depend on a judge."""
    return task.criteria is not None and JUDGED in basis and bool(task.nl_assertions)


def premature(task: TaskSpec, reason: str, basis: Sequence[str] | None = None) -> RewardInfo:
    """The reward of an episode that neither side ended: 0 without a breakdown, as in tau2."""
    return RewardInfo(reward=0.0, basis=list(task.reward_basis if basis is None else basis), note=f"ended prematurely: {reason}")


def evaluate(
    backend: DomainBackend,
    task: TaskSpec,
    outcome: Outcome,
    *,
    basis: Sequence[str] | None = None,
    references: References | None = None,
    always_judge: bool = False,
) -> RewardInfo:
    """The reward of a finished episode with every check behind it, as far as it goes without a judge.

    ``pending`` names NL_ASSERTION where only a judge can tell. A reward that is 0 anyway stays 0 whatever a judge would say, so there
    nothing is pending, unless ``always_judge`` wants the factor for its own sake (as upstream). Raises ValueError for an unknown reward
    type.
    """
    basis = task.reward_basis if basis is None else basis
    if task.criteria is None:
        return RewardInfo(reward=1.0, basis=[], note="the task has no evaluation criteria")
    if unknown := sorted(set(basis) - CHECKERS.keys() - {JUDGED}):
        raise ValueError(f"task {task.task_id}: unknown reward type {unknown[0]!r}")
    found = {kind: check(Looked(backend, task, outcome, references or References())) for kind, check in CHECKERS.items()}
    checks = [check.model_copy(update={"kind": kind, "counts": kind in basis}) for kind, some in found.items() for check in some]
    breakdown = {kind: float(all(check.passed for check in found[kind])) for kind in basis if kind in found}
    info = RewardInfo(reward=prod(breakdown.values()), basis=list(basis), breakdown=breakdown, checks=checks)
    if JUDGED not in basis:
        return info
    if not task.nl_assertions:
        return judged(info, [])
    if not info.reward and not always_judge:
        return info.model_copy(update={"note": "the judge was not asked, because the reward is 0 without it"})
    return info.model_copy(update={"pending": [JUDGED]})


def judged(info: RewardInfo, checks: Sequence[Check]) -> RewardInfo:
    """``info`` with the judge's checks, and so with its final reward."""
    factor = float(all(check.passed for check in checks))
    return info.model_copy(
        update={
            "reward": info.reward * factor,
            "breakdown": info.breakdown | {JUDGED: factor},
            "checks": [*info.checks, *checks],
            "pending": [kind for kind in info.pending if kind != JUDGED],
        }
    )


def matches(action: Action, use: ToolUse) -> bool:
    """Whether a tool call counts as a reference action (upstream `Action.compare_with_tool_call`).

    Without ``compare_args`` the arguments that the *call* has are compared, so a correct subset matches.
    """
    if action.name != use.name:
        return False
    keys = set(use.arguments) if action.compare_args is None else set(action.compare_args)
    left = {key: value for key, value in use.arguments.items() if key in keys}
    return left == {key: value for key, value in action.arguments.items() if key in keys}


@dataclass(frozen=True, slots=True)
class Looked:
    """What a checker may look at."""

    backend: DomainBackend
    task: TaskSpec
    outcome: Outcome
    references: References


def _db(at: Looked) -> list[Check]:
    if not at.task.has_end_state:
        return [Check(name="db", passed=True, detail="the task names no end state")]
    reference = at.references.of(at.backend, at.task)
    reached = at.outcome.end_state or at.outcome.session.fingerprint()
    agent, user = (ours == theirs for ours, theirs in zip(reached, reference, strict=True))
    return [Check(name="agent_db", passed=agent), Check(name="user_db", passed=user)]


def _assertions(at: Looked) -> list[Check]:
    return [_assertion(at.outcome.session, assertion) for assertion in at.task.assertions]


def _assertion(session: Session, assertion: EnvCall) -> Check:
    name = f"{assertion.env_type}.{assertion.name}"
    try:
        value = session.run(assertion)
    except Exception as error:  # noqa: BLE001 - boundary to the domain's code: an assertion that raises is a state that was not reached
        return Check(name=name, passed=False, detail=f"raised: {error}")
    return Check(name=name, passed=value is assertion.assert_value, detail=f"{assertion.arguments} is {value}")


def _actions(at: Looked) -> list[Check]:
    return [
        Check(name=f"action.{action.name}", passed=any(matches(action, use) for use in at.outcome.tool_uses), detail=str(action.arguments))
        for action in at.task.actions
    ]


def _communicated(at: Looked) -> list[Check]:
    texts = [text.lower().replace(",", "") for text in at.outcome.agent_texts]
    return [Check(name="communicate", passed=any(info.lower() in text for text in texts), detail=info) for info in at.task.communicate_info]


CHECKERS: dict[str, Callable[[Looked], list[Check]]] = {
    "DB": _db,
    "ENV_ASSERTION": _assertions,
    "ACTION": _actions,
    "COMMUNICATE": _communicated,
}
"""In this order: assertions may write, so the databases are looked at before."""
