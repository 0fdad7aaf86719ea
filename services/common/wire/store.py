"""Wire schemas of the trajectory store: queue leases, sessions, batches, the ledger.

All timestamps are Unix seconds of the Redis server's clock, all durations seconds.
"""

from typing import Any, Literal

import msgspec
from pydantic import Field

from services.common.wire.rollouts import Id, Kind, RolloutRequest, Wire


class EnqueueBody(Wire):
    """POST /v1/rollouts. Idempotent by episode id."""

    requests: list[RolloutRequest]


class EnqueueReply(Wire):
    enqueued: int
    known: int
    """Requests whose episode id the store had already; they are left as they are."""


class LeaseRolloutsBody(Wire):
    """POST /v1/rollouts/lease. Waits up to ``wait_s`` for the first request."""

    worker_id: Id
    limit: int = Field(default=1, ge=1, le=1024)
    ttl_s: float = Field(default=30.0, gt=0, le=3600)
    wait_s: float = Field(default=0.0, ge=0, le=30)
    trials: list[str] = []
    """``experiment/trial`` names to lease from, shared fairly by running episodes; ``*`` is every trial. Empty: the trial of the URL."""


class RolloutLease(Wire):
    """A time-bound claim on one rollout request; it must be renewed before ``expires_at``."""

    lease_id: Id
    trial: str = ""
    """Where ``trials`` were given: everything else about the lease goes to ``/t/{trial}/v1/…``."""
    request: RolloutRequest
    """``attempt`` is filled in by the store."""
    expires_at: float


class LeaseRolloutsReply(Wire):
    leases: list[RolloutLease]


class HeartbeatBody(Wire):
    """POST /v1/rollouts/heartbeat."""

    worker_id: Id
    lease_ids: list[Id]
    ttl_s: float = Field(default=30.0, gt=0, le=3600)


class HeartbeatReply(Wire):
    lost: list[Id]
    """Leases that are no longer the worker's: it must stop those episodes and not report them."""


class ReleaseBody(Wire):
    """POST /v1/rollouts/release: gives a lease back unfinished (shutdown), or reports a failed attempt for retry."""

    lease_id: Id
    reason: str
    count_attempt: bool = True
    """False where the worker only shuts down: the attempt does not count against the maximum."""


class CancelBody(Wire):
    """POST /v1/rollouts/cancel: makes episodes final without a result, running ones included; what is final already stays as it is."""

    episode_ids: list[Id] = []
    group_ids: list[Id] = []
    """All members."""
    reason: str = Field(default="by request", max_length=500)


class CancelReply(Wire):
    cancelled: int
    final: int
    """Episodes that were final already."""
    unknown: list[str] = []


class PauseBody(Wire):
    """POST /v1/queue/pause, /v1/queue/resume and /v1/queue/drain. While a kind is paused, none of its episodes is leased."""

    kinds: list[Kind] = list(Kind)
    reason: str = Field(default="by request", max_length=500)
    wait_s: float = Field(default=0.0, ge=0, le=30)
    """drain: how long to wait for the running episodes."""


class QueueState(Wire):
    """Reply of the queue routes."""

    running: int
    """Leased episodes of the kinds asked for."""
    paused: dict[Kind, str]
    """Kind -> reason."""


class SealBody(Wire):
    """POST /v1/sessions/{session_id}/seal. After it, new intents and calls are refused with 409."""

    exported: bool = False
    """Its calls were handed to somebody else than the trainer: no trajectory will name it, and it takes no more rewards."""


class SessionView(Wire):
    """GET /v1/sessions/{session_id}."""

    session_id: Id
    sealed: bool
    n_calls: int
    open_intents: list[str]
    """Calls begun and never recorded: the session is incomplete and cannot be trained on."""
    created_at: float
    n_rewards: int = 0
    closed: str = ""
    """Why it takes no more rewards: ``trajectory`` (one names it), ``retried``, ``superseded`` (its attempt lost), ``exported``."""


class PutTrajectoryReply(Wire):
    """PUT /v1/trajectories/{episode_id}."""

    outcome: Literal["stored", "duplicate", "superseded", "retry"]
    """``duplicate``: the same attempt was stored before. ``superseded``: another attempt won. ``retry``: failed, queued again."""


class LeaseBatchBody(Wire):
    """POST /v1/batches/lease: up to ``n_groups`` ready groups of one kind.

    Waits up to ``wait_s`` until ``n_groups`` are ready; replies with fewer only where ``allow_partial`` is set.
    A consumer that leases again is first given back, unchanged, the batch it holds and has not acked (crash recovery).
    """

    consumer_id: Id
    kind: Kind = Kind.TRAIN
    n_groups: int = Field(ge=1)
    ttl_s: float = Field(default=300.0, gt=0)
    wait_s: float = Field(default=0.0, ge=0, le=30)
    allow_partial: bool = False
    max_staleness: int | None = Field(default=None, ge=0)
    """Episodes whose oldest policy version is older than ``policy_version`` minus this are dropped as ``stale`` instead of delivered."""
    policy_version: int | None = Field(default=None, ge=0)
    """The version that will be trained; default the newest published one."""
    content: bool = True
    """False: the groups come without content, and each rank reads its part at ``/v1/batches/{id}/shard``."""


class AckBatchBody(Wire):
    """POST /v1/batches/{batch_id}/ack. Every episode of the batch is in exactly one of the two; idempotent."""

    trained: list[Id]
    dropped: dict[Id, str] = {}
    """episode id -> reason (stale, filtered_all_success, filtered_all_fail, failed_<who>, incomplete, over_length, eval …)."""
    step: int
    policy_version: int


class ExtendBody(Wire):
    """POST /v1/batches/{batch_id}/extend: keeps a batch for ``ttl_s`` more seconds."""

    ttl_s: float = Field(gt=0)


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a leased group, in the msgpack body of a batch."""

    trajectory: dict[str, Any]
    """`Trajectory` as JSON-able dict."""
    calls: list[bytes]
    """Encoded `CallRecord`s, in ordinal order; empty where the session is incomplete."""
    complete: bool
    """False where the session has open intents, is missing or was never sealed."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A ready group."""

    group_id: str
    episodes: list[Episode]


class WholeTrajectory(msgspec.Struct, frozen=True, kw_only=True):
    """The msgpack body of PUT /v1/trajectories/{episode_id}: a trajectory together with its token tree, whose session it seals."""

    trajectory: dict[str, Any]
    calls: list[bytes]
    """Encoded `CallRecord`s of the session that the trajectory names."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of POST /v1/batches/lease (application/msgpack). ``batch_id`` is "" and ``groups`` empty where nothing was ready."""

    batch_id: str
    kind: str
    groups: list[Group]
    redelivered: bool = False
    expires_at: float = 0.0


class PolicyVersion(Wire):
    """POST /v1/policy_versions and its reply: one published set of weights."""

    version: int = Field(ge=0)
    path: str
    step: int = 0
    published_at: float = 0.0


class MetricsRecord(Wire):
    """POST /v1/metrics: one line of experiment metrics (AReaL's names where AReaL has one)."""

    step: int
    values: dict[str, float]
    phase: str = ""
    at: float = 0.0


class Counts(Wire):
    """GET /v1/stats. ``trajectories_in = trained + dropped + waiting + leased`` always (per kind)."""

    queued: int
    running: int
    trajectories_in: int
    trained: int
    dropped: int
    waiting: int
    leased: int
    ready_groups: int
    lost: int
    """Episodes enqueued that are neither queued, running, delayed for retry nor final: always 0 unless data was lost."""
    duplicated: int
    """Episodes acked as trained more than once: always 0."""
    drops: dict[str, int] = {}
    retries: int = 0
    superseded: int = 0
    """Reports of an attempt that came after another attempt of the episode had won; no drops, because the episode counts once."""
    duplicates_refused: int = 0
    """Second PUTs of an episode that was final already (harmless, counted)."""


class Stats(Wire):
    """GET /v1/stats."""

    kinds: dict[Kind, Counts]
    total: Counts
    policy_version: int = -1
    trajectories: int = 0
    """Stored now, ad-hoc ones included."""
    body_bytes: int = 0
    """Of messages and packed token trees, spilled ones included."""
    alarms: dict[str, str] = {}
    """Name -> text of the alarms that stand."""
    paused: dict[str, str] = {}
    """Kind -> reason of what is not leased now."""
    losses: dict[str, str] = {}
    """Moments at which Redis was found without writes that it had acknowledged."""
