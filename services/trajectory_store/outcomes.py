"""Owns what a finished attempt means: whether another attempt may do better, and how a trajectory is split for storage.

Pure functions. Refuses to decide about training: a failed episode is delivered with its failure, the trainer drops it.
"""

from collections.abc import Mapping
from typing import Any, cast

import orjson
from pydantic import ValidationError

from services.common.wire.rollouts import SCHEMA_VERSION, Failure, Owner, RolloutRequest, Status, TaskStamp, Timings, Trajectory
from services.trajectory_store.tree_codec import expand, squeeze

RETRYABLE = frozenset({Owner.USER, Owner.ENV, Owner.INFRA, Owner.JUDGE})
"""Whose failures another attempt may not meet. A failure of the policy is the policy's result."""

CANCELLED = "cancelled: "
"""How the reason of a cancelled episode begins (lua/cancel.lua)."""


class SchemaTooNew(ValueError):
    """The trajectory was written by a newer version than this store reads."""


def read_trajectory(body: bytes) -> Trajectory:
    """A trajectory from JSON. Raises `SchemaTooNew`, pydantic's ValidationError, or ValueError where it is no JSON object."""
    return trajectory_of(orjson.loads(body))


def trajectory_of(raw: Any) -> Trajectory:
    """A trajectory from decoded JSON or msgpack. Raises as `read_trajectory`."""
    if not isinstance(raw, dict):
        raise ValueError("body: expected an object")
    fields = cast("dict[str, Any]", raw)
    version = fields.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaTooNew(f"schema_version: {version} is newer than the {SCHEMA_VERSION} this store reads; upgrade the store first")
    return Trajectory.model_validate(fields)


def explain(error: ValidationError) -> tuple[str, str]:
    """(field, message) of the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"]


def is_retryable(trajectory: Trajectory) -> bool:
    """Whether another attempt may end differently through no change of the policy."""
    failure = trajectory.failure
    return failure is not None and failure.who in RETRYABLE and not failure.final


def drop_reason(trajectory: Trajectory) -> str:
    """Why the store itself drops a final trajectory, "" where the trainer decides."""
    return "cancelled" if trajectory.failure is not None and trajectory.failure.final else ""


def oldest_version(trajectory: Trajectory) -> int | None:
    """The oldest policy version that answered; None where none is known."""
    return min(trajectory.policy_versions, default=None)


def split(trajectory: Trajectory) -> tuple[bytes, bytes]:
    """(head, messages) as JSON, the messages compressed where that pays: a listing reads only heads."""
    head = trajectory.model_dump(mode="json", exclude={"messages"})
    return orjson.dumps(head), squeeze(orjson.dumps(trajectory.messages))


def joined(head: Mapping[str, Any], messages: bytes | None) -> dict[str, Any]:
    """Inverse of `split`."""
    return {**head, "messages": orjson.loads(expand(messages or b"[]"))}


def failed_head(request: bytes, attempt: int, who: str, why: str, leased_at: float, final_at: float) -> dict[str, Any]:
    """The head of an episode whose last attempt ended without a report: lease expired or given up by its worker."""
    wanted = RolloutRequest.model_validate_json(request)
    trajectory = Trajectory(
        episode_id=wanted.episode_id,
        group_id=wanted.group_id,
        sample_index=wanted.sample_index,
        group_size=wanted.group_size,
        attempt=max(attempt, 1),
        kind=wanted.kind,
        task=wanted.task,
        stamp=TaskStamp(source="unreported", digest=""),
        status=Status.FAILED,
        termination_reason="unreported",
        failure=Failure(who=Owner(who), why=why, final=why.startswith(CANCELLED)),
        sampling=wanted.sampling,
        seed=wanted.seed,
        demonstration=wanted.demonstration,
        timings=Timings(started_at=leased_at, total_s=max(0.0, final_at - leased_at)),
    )
    return trajectory.model_dump(mode="json", exclude={"messages"})
