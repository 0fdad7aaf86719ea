"""Owns what is noted of a running episode, and the trajectory that can be written from it at any moment.

Refuses judgement: status and reward follow from what others decided.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.agent_runner.conversation.messages import Json, for_record
from services.agent_runner.conversation.orchestrator import Trace
from services.agent_runner.conversation.protocol import Conversation, Role, Termination
from services.agent_runner.reward.credit import turn_rewards
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Failure, Owner, RewardInfo, RolloutRequest, Status, TaskStamp, Timings, Trajectory

Watch = Callable[[str, Json], None]

TRUNCATED = frozenset({Termination.MAX_STEPS, Termination.TOO_MANY_ERRORS, Termination.CONTEXT, Termination.TIMEOUT})
"""Every other way to end is the policy's own doing and scored."""
DOMAINS_WITH_VARIANTS = frozenset({"retail"})


@dataclass(slots=True)
class Run:
    """What is known of an episode so far."""

    request: RolloutRequest
    session_id: str
    watch: Watch
    conversation: Conversation = field(default_factory=lambda: Conversation(solo=True, max_steps=1, max_errors=1))
    """An empty one until the task is known."""
    trace: Trace = field(default_factory=Trace)
    stamp: TaskStamp = field(default_factory=lambda: TaskStamp(source="unknown", digest=""))
    preparing: Owner | None = Owner.ENV
    """Who is at work while nobody has a turn."""
    opened: bool = False
    """Whether the proxy has a session."""
    n_given: int = 0
    """Messages that were there before this episode went live."""
    failed_turns: list[str] = field(default_factory=list[str])
    """Fault labels of user turns that came to nothing."""
    versions: set[int] = field(default_factory=set[int])
    reward: RewardInfo | None = None
    end_state: list[str] = field(default_factory=list[str])
    records: list[Json] = field(default_factory=list[Json])
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    evaluate_s: float = 0.0

    def note_messages(self) -> None:
        """Records the messages since the last time, and tells whoever watches."""
        for message in self.conversation.messages[len(self.records) :]:
            record = for_record(message)
            self.records.append(record)
            self.watch("message", record)

    def stepped(self, role: Role, seconds: float, version: int | None) -> None:
        """Notes one step of the conversation."""
        self.note_messages()
        data: Json = {"role": role.value, "seconds": round(seconds, 6), "turn": self.conversation.turns, "step": self.conversation.steps}
        if role is Role.AGENT:
            data["policy_version"] = version
        self.watch("turn", data)

    def user_faults(self) -> dict[str, int]:
        """User turns of this episode by fault label."""
        live = self.records[self.n_given :]
        labels = [str(record.get("fault", "ok")) for record in live if record["role"] == "user"]
        return dict(Counter([*labels, *self.failed_turns]))


def trajectory_of(run: Run, failure: Failure | None, config: ExperimentConfig) -> Trajectory:
    """The trajectory of an episode that is over. A failed one keeps its reward's parts only where the judge alone is missing."""
    request, conversation = run.request, run.conversation
    termination = conversation.termination
    status = Status.TRUNCATED if termination in TRUNCATED else Status.SCORED
    reward = run.reward
    variant = config.econfig.retail_reward if request.task.domain in DOMAINS_WITH_VARIANTS else ""
    if failure is not None:
        status, reward = Status.FAILED, reward if reward is not None and reward.pending else None
    facts: dict[str, Any] = request.model_dump(
        include={
            "episode_id",
            "group_id",
            "sample_index",
            "group_size",
            "attempt",
            "kind",
            "task",
            "sampling",
            "seed",
            "demonstration",
            "lineage",
        }
    )
    errors = sorted(set(run.trace.format_errors))
    return Trajectory(
        **facts,
        stamp=run.stamp,
        status=status,
        reward=None if reward is None or failure is not None else reward.reward,
        reward_info=None if reward is None else reward.model_copy(update={"variant": variant}),
        termination_reason=f"failed_{failure.who}" if failure else str(termination),
        failure=failure,
        messages=run.records,
        n_turns=conversation.turns,
        n_tool_errors=conversation.errors,
        session_id=run.session_id if run.opened else None,
        policy_versions=sorted(run.versions),
        turn_rewards=[] if reward is None or failure is not None else _credit(reward.reward, conversation.turns, errors, config),
        format_errors=errors,
        user_faults=run.user_faults(),
        end_state=run.end_state,
        reward_variant=variant,
        timings=_timings(run),
    )


def _credit(reward: float, n_turns: int, errors: list[int], config: ExperimentConfig) -> list[float]:
    env = config.econfig
    # The later calls of a session that time cut off are no turns of the conversation.
    made = [index for index in errors if index < n_turns]
    discount = env.turn_discount if env.turn_discount != 1 else config.rollout.agent.turn_discount
    return turn_rewards(reward, n_turns, turn_discount=discount, format_errors=made, penalty=env.invalid_format_penalty)


def _timings(run: Run) -> Timings:
    clock = run.trace.clock
    return Timings(
        started_at=run.started_at,
        total_s=time.monotonic() - run.started,
        agent_s=clock.agent_s,
        user_s=clock.user_s,
        env_s=clock.env_s,
        evaluate_s=run.evaluate_s,
    )
