"""Owns the routes of trajectories: reporting an attempt, reading and listing."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from services.common.errors import BadRequest
from services.common.wire.rollouts import Id, Kind, Status, Trajectory
from services.common.wire.store import PutTrajectoryReply
from services.trajectory_store.outcomes import SchemaTooNew, read_trajectory
from services.trajectory_store.redis_store.trajectories import Filters
from services.trajectory_store.routes.deps import PathId, StoreDep, guarded_router, read_body


def router() -> APIRouter:
    """``/v1/trajectories``."""
    routes = guarded_router("trajectories")
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": Trajectory.model_json_schema()}}}}
    routes.add_api_route("/trajectories/{episode_id}", put_trajectory, methods=["PUT"], openapi_extra=body)
    routes.add_api_route("/trajectories/{episode_id}", get_trajectory, methods=["GET"], response_model=Trajectory)
    routes.add_api_route("/trajectories", list_trajectories, methods=["GET"])
    return routes


async def put_trajectory(
    episode_id: PathId,
    request: Request,
    store: StoreDep,
    x_lease_id: Annotated[Id, Header()] | None = None,
) -> PutTrajectoryReply:
    """Reports an attempt. The first final attempt wins; a retryable failure queues the episode again."""
    trajectory = _parse(await read_body(request))
    if trajectory.episode_id != episode_id:
        raise BadRequest(f"episode_id: the body says {trajectory.episode_id}, the path says {episode_id}", param="episode_id")
    outcome = await store.trajectories.put(trajectory, x_lease_id or "")
    if outcome == "stored":
        store.ready.ring()
    return PutTrajectoryReply(outcome=outcome)


async def get_trajectory(episode_id: PathId, store: StoreDep) -> Response:
    """One trajectory."""
    return Response(orjson.dumps(await store.trajectories.get(episode_id)), media_type="application/json")


async def list_trajectories(
    store: StoreDep,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    kind: Kind | None = None,
    group_id: Id | None = None,
    task_id: str | None = None,
    status: Status | None = None,
) -> Response:
    """Trajectories without messages, in completion order. ``next`` is the cursor to go on from, at the end too."""
    items, cursor = await store.trajectories.page(after, limit, Filters(kind, group_id, task_id, status))
    page: dict[str, Any] = {"items": items, "next": cursor}
    return Response(orjson.dumps(page), media_type="application/json")


def _parse(body: bytes) -> Trajectory:
    try:
        return read_trajectory(body)
    except SchemaTooNew as error:
        raise BadRequest(str(error), code="schema_too_new", param="schema_version") from error
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from error
    except ValueError as error:
        raise BadRequest(f"not a trajectory: {error}") from error
