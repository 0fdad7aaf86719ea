"""Wire schemas of the rollout side: what to run (`RolloutRequest`) and what came of it (`Trajectory`).

The words are those of docs/architecture.md. Refuses meaning: statuses are data here, decisions about them live in the services.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from services.common.ids import ID_PATTERN

SCHEMA_VERSION = 1
"""Of `Trajectory` and of call records. A reader refuses anything newer."""

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN.pattern)]


class Wire(BaseModel):
    """Base of all wire schemas: an unknown field is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Kind(StrEnum):
    """Why an episode is run."""

    TRAIN = "train"
    EVAL = "eval"
    DEMO = "demo"
    """A demonstration for SFT, played by a scripted agent (a stand-in for a teacher)."""


class Sampling(Wire):
    """How the policy samples, per call."""

    temperature: float = Field(default=1.0, ge=0.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=128, ge=1)
    """Longest completion of one call, in tokens."""
    seed: int = 0


class TaskRef(Wire):
    """Names one tau2 task."""

    domain: str = "telecom"
    split: str = "small"
    task_id: str
    solo_mode: bool = True


class Demonstration(Wire):
    """How the scripted demonstrator plays (kind = demo only)."""

    quality: Literal["complete", "gives_up", "skips_step"] = "complete"


class Lineage(Wire):
    """Where a relived episode branched off."""

    episode_id: Id
    attempt: int
    turn: int
    """The agent's turn of the original that was made anew; 0 is the first."""


class RolloutRequest(Wire):
    """An episode waiting to be run."""

    episode_id: Id
    group_id: Id
    sample_index: int = Field(default=0, ge=0)
    group_size: int = Field(default=1, ge=1)
    kind: Kind = Kind.TRAIN
    task: TaskRef
    sampling: Sampling = Sampling()
    max_steps: int = Field(default=100, ge=1)
    seed: int = 0
    policy_version: int = Field(default=0, ge=0)
    """The version published when the request was made; calls record the versions that really answered."""
    demonstration: Demonstration | None = None
    attempt: int = Field(default=1, ge=1)
    """Counted by the store: 1 for the first lease."""
    lineage: Lineage | None = None
    """The original, for an episode that continues one."""

    @model_validator(mode="after")
    def _demo_has_a_script(self) -> "RolloutRequest":
        if (self.kind is Kind.DEMO) != (self.demonstration is not None):
            raise ValueError("demonstration: set it for kind=demo and for no other kind")
        return self


class Status(StrEnum):
    """How an episode ended."""

    SCORED = "scored"
    TRUNCATED = "truncated"
    FAILED = "failed"


class Owner(StrEnum):
    """Whose fault a failure is."""

    POLICY = "policy"
    USER = "user"
    ENV = "env"
    INFRA = "infra"
    JUDGE = "judge"


class Failure(Wire):
    """Why an episode has no reward."""

    who: Owner
    why: str
    final: bool = False
    """No other attempt is wanted, whoever's fault it is: the episode was cancelled by request."""


class Check(Wire):
    """One thing that was looked at after the episode."""

    name: str
    passed: bool
    detail: str = ""
    kind: str = ""
    """The reward type it belongs to, such as ``DB`` or ``ACTION``."""
    counts: bool = True
    """Whether that type is in the reward basis; the others are there to be read."""


class RewardInfo(Wire):
    """The reward and how it came about."""

    reward: float
    basis: list[str]
    breakdown: dict[str, float] = {}
    """Reward type -> its factor; the reward is their product over the basis."""
    checks: list[Check] = []
    pending: list[str] = []
    """Reward types that nobody could decide, because the judge failed: the reward is the product of the others, so an upper bound."""
    variant: str = ""
    """Which reward variant was configured, for domains that have several (retail)."""
    note: str = ""


class TaskStamp(Wire):
    """Which task data produced a trajectory; a run never mixes sources."""

    source: str
    """Such as ``inspect-evals 0.26.0``."""
    digest: str
    """sha256 over the task's canonical JSON."""


class Timings(Wire):
    """Wall-clock seconds."""

    started_at: float
    """Unix time."""
    total_s: float
    agent_s: float = 0.0
    user_s: float = 0.0
    env_s: float = 0.0
    evaluate_s: float = 0.0


class Trajectory(Wire):
    """A finished episode. Its tokens are in the session of the same attempt; the store joins the two."""

    schema_version: int = SCHEMA_VERSION
    episode_id: Id
    group_id: Id
    sample_index: int = 0
    group_size: int = 1
    attempt: int = 1
    kind: Kind
    task: TaskRef
    stamp: TaskStamp
    status: Status
    reward: float | None = None
    """None exactly when status is failed."""
    reward_info: RewardInfo | None = None
    termination_reason: str
    failure: Failure | None = None
    messages: list[dict[str, Any]] = []
    """OpenAI chat format, plus on tool messages ``requestor`` where the user called and ``error`` where the call failed; the agent's system
    message is left out."""
    n_turns: int = 0
    n_tool_errors: int = 0
    session_id: Id | None = None
    policy_versions: list[int] = []
    """Versions seen in call headers, ascending and without repeats."""
    turn_rewards: list[float] = []
    """What each agent call earned, in call order (services/agent_runner/reward/credit.py); empty: the episode's reward for each of them."""
    format_errors: list[int] = []
    """Agent calls (0 is the first) whose tool call could not be parsed."""
    user_faults: dict[str, int] = {}
    """User turns by their fault label, ``ok`` included."""
    end_state: list[str] = []
    """Digests of the agent's and the user's database at the end; equal in two episodes of one task exactly where the states are."""
    reward_variant: str = ""
    """As in ``reward_info``, also where the episode failed."""
    sampling: Sampling
    seed: int = 0
    demonstration: Demonstration | None = None
    lineage: Lineage | None = None
    """The original, for an episode that was relived: the messages before that turn are the original's."""
    timings: Timings

    @model_validator(mode="after")
    def _reward_matches_status(self) -> "Trajectory":
        failed = self.status is Status.FAILED
        if failed != (self.reward is None) or failed != (self.failure is not None):
            raise ValueError("status=failed carries a failure and no reward; any other status carries a reward and no failure")
        return self
