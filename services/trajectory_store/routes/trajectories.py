"""Owns the routes of trajectories: reporting an attempt, reading, listing and searching."""

from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from services.common.errors import BadRequest
from services.common.http import MSGPACK
from services.common.wire.calls import decode_call
from services.common.wire.rollouts import Id, Kind, Status, Trajectory
from services.common.wire.store import PutTrajectoryReply, WholeTrajectory
from services.trajectory_store.outcomes import SchemaTooNew, read_trajectory, trajectory_of
from services.trajectory_store.queries import Filters
from services.trajectory_store.routes.deps import LEAN, PathId, StoreDep, body_of, guarded_router
from services.trajectory_store.token_join import in_order

_whole = msgspec.msgpack.Decoder(WholeTrajectory)


def router() -> APIRouter:
    """``/v1/trajectories``."""
    routes = guarded_router("trajectories")
    schema = Trajectory.model_json_schema()
    content = {"application/json": {"schema": schema}, MSGPACK: {"schema": {"type": "string", "format": "binary"}}}
    body = {"requestBody": {"required": True, "content": content}}
    LEAN.add(routes, "/trajectories/{episode_id}", put_trajectory, "PUT", openapi_extra=body)
    routes.add_api_route("/trajectories/{episode_id}", get_trajectory, methods=["GET"], response_model=Trajectory)
    routes.add_api_route("/trajectories", list_trajectories, methods=["GET"])
    return routes


async def put_trajectory(
    episode_id: PathId,
    request: Request,
    store: StoreDep,
    x_lease_id: Annotated[Id | None, Header()] = None,
) -> PutTrajectoryReply:
    """Reports an attempt. The first final attempt wins; a retryable failure queues the episode again.

    JSON is a `Trajectory` whose tokens are in its session; msgpack is a `WholeTrajectory` that brings them along.
    ``Content-Encoding: zstd`` is understood.
    """
    async with body_of(request) as body:
        whole = request.headers.get("content-type", "").startswith(MSGPACK)
        trajectory, calls = _parse_whole(body) if whole else (_parse(body), None)
        if trajectory.episode_id != episode_id:
            raise BadRequest(f"episode_id: the body says {trajectory.episode_id}, the path says {episode_id}", param="episode_id")
        outcome = await store.trajectories.put(trajectory, x_lease_id or "", calls)
    if outcome == "stored":
        store.ready.ring()
    return PutTrajectoryReply(outcome=outcome)


async def get_trajectory(episode_id: PathId, store: StoreDep) -> Response:
    """One trajectory."""
    return Response(orjson.dumps(await store.trajectories.get(episode_id)), media_type="application/json")


async def filters_of(
    kind: Kind | None = None,
    group_id: Id | None = None,
    task_id: str | None = None,
    status: Status | None = None,
    version: int | None = None,
    min_reward: float | None = None,
    max_reward: float | None = None,
    text: Annotated[str | None, Query(min_length=1, max_length=500)] = None,
) -> Filters:
    """The filters of a query string."""
    return Filters(kind, group_id, task_id, status, version, min_reward, max_reward, text)


async def list_trajectories(
    store: StoreDep,
    filters: Annotated[Filters, Depends(filters_of)],
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Trajectories without messages, in completion order. ``next`` is the cursor to go on from, at the end too."""
    page = await store.trajectories.page(after, limit, filters)
    body: dict[str, Any] = {"items": page.items, "next": page.cursor, "more": page.more}
    return Response(orjson.dumps(body), media_type="application/json")


def _parse(body: bytes) -> Trajectory:
    try:
        return read_trajectory(body)
    except SchemaTooNew as error:
        raise BadRequest(str(error), code="schema_too_new", param="schema_version") from error
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error
    except ValueError as error:
        raise BadRequest(f"not a trajectory: {error}") from error


def _parse_whole(body: bytes) -> tuple[Trajectory, list[bytes]]:
    try:
        whole = _whole.decode(body)
        trajectory = trajectory_of(whole.trajectory)
        sessions = {decode_call(call).session_id for call in whole.calls}
    except SchemaTooNew as error:
        raise BadRequest(str(error), code="schema_too_new", param="schema_version") from error
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", "trajectory", *item["loc"])} for item in error.errors()]) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"not a whole trajectory: {error}", code="bad_trajectory") from error
    if trajectory.session_id is None or not sessions <= {trajectory.session_id}:
        raise BadRequest(
            f"calls: they belong to {sorted(sessions)}, the trajectory names session_id={trajectory.session_id}", param="calls"
        )
    return trajectory, in_order(whole.calls)
