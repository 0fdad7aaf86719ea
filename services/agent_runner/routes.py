"""Owns the HTTP form of the agent runner: single episodes, and what there is to run. Checks names before anything is started."""

import difflib
from typing import Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from services.agent_runner.adhoc import AdhocEpisodes
from services.agent_runner.domains import DOMAINS, DomainBackend, TaskSpec, UnknownDomain, UnknownSplit, open_backend
from services.agent_runner.worker import Worker
from services.common.config import ExperimentConfig
from services.common.errors import BadRequest, NotFound, RemoteError, Unavailable
from services.common.ids import new_id
from services.common.wire.rollouts import Demonstration, Kind, RolloutRequest, Sampling, TaskRef, Trajectory, Wire


async def domains_loaded(request: Request) -> None:
    """Refuses while the domain's package is still being imported, which would stall every episode if it happened in a request."""
    if not request.app.state.loaded.is_set():
        raise Unavailable("the domains are still being loaded", retry_after_s=2)


router = APIRouter(prefix="/v1", tags=["episodes"], dependencies=[Depends(domains_loaded)])


class EpisodeBody(Wire):
    """POST /v1/episodes. What is left out comes from the experiment's config."""

    domain: str = "telecom"
    split: str = "small"
    task_id: str
    solo_mode: bool = True
    sampling: Sampling | None = None
    seed: int = 0
    max_steps: int | None = Field(default=None, ge=1)
    demonstration: Demonstration | None = None


class EpisodeState(Wire):
    """GET /v1/episodes/{id}."""

    state: str
    trajectory: Trajectory | None = None


class TaskView(Wire):
    """One task of a listing."""

    task_id: str
    digest: str
    scenario: str
    """Equal for tasks that tell the agent the same."""
    reward_basis: list[str]
    solo: bool


class TaskList(Wire):
    """GET /v1/tasks."""

    domain: str
    split: str
    source: str
    tasks: list[TaskView]


class DomainView(Wire):
    """One domain of a listing."""

    domain: str
    source: str
    splits: dict[str, int]


@router.post("/episodes", responses={202: {"description": "Started; ask for it by its id"}})
async def run_episode(request: Request, response: Response, body: EpisodeBody, wait: bool = False) -> dict[str, Any]:
    """Runs one episode outside the queue. With ``wait`` the answer is its trajectory, without 202 and its id."""
    config: ExperimentConfig = request.app.state.config
    episodes: AdhocEpisodes = request.app.state.adhoc
    rollout = _request_of(body, config)
    task = episodes.start(rollout)
    if wait:
        return (await task).model_dump(mode="json")
    response.status_code = 202
    return {"episode_id": rollout.episode_id}


@router.get("/episodes/{episode_id}")
async def get_episode(request: Request, episode_id: str) -> EpisodeState:
    """The state of an episode, and its trajectory once it has ended."""
    episodes: AdhocEpisodes = request.app.state.adhoc
    worker: Worker = request.app.state.worker
    if episodes.is_running(episode_id) or episode_id in worker.running:
        return EpisodeState(state="running")
    try:
        trajectory = await episodes.find(episode_id)
    except RemoteError as error:
        raise Unavailable(f"the trajectory store cannot be asked: {error}", retry_after_s=2) from error
    if trajectory is None:
        raise NotFound(f"episode_id: no episode {episode_id!r} here or in the store", param="episode_id")
    return EpisodeState(state="finished", trajectory=trajectory)


@router.get("/domains")
async def list_domains() -> dict[str, list[DomainView]]:
    """Every domain with its splits and their sizes."""
    views: list[DomainView] = []
    for name in DOMAINS:
        backend = open_backend(name)
        sizes = {split: len(backend.tasks(split)) for split in backend.splits()}
        views.append(DomainView(domain=name, source=backend.source, splits=sizes))
    return {"items": views}


@router.get("/tasks")
async def list_tasks(domain: str = "telecom", split: str = Query(default="small")) -> TaskList:
    """The tasks of a split."""
    backend, tasks = _tasks(domain, split)
    views = [
        TaskView(
            task_id=task.task_id,
            digest=task.digest,
            scenario=task.scenario,
            reward_basis=list(task.reward_basis),
            solo=task.ticket is not None,
        )
        for task in tasks
    ]
    return TaskList(domain=domain, split=split, source=backend.source, tasks=views)


def _request_of(body: EpisodeBody, config: ExperimentConfig) -> RolloutRequest:
    """The rollout request of a body. Raises `BadRequest` and `NotFound` that name the field and what would be right."""
    _, tasks = _tasks(body.domain, body.split)
    task = next((task for task in tasks if task.task_id == body.task_id), None)
    if task is None:
        close = difflib.get_close_matches(body.task_id, [task.task_id for task in tasks], n=3, cutoff=0.4)
        hint = f"; close: {', '.join(close)}" if close else f"; see /v1/tasks?domain={body.domain}&split={body.split}"
        raise NotFound(f"task_id: {body.domain}/{body.split} has no task {body.task_id!r}{hint}", param="task_id", extra={"close": close})
    if body.solo_mode and task.ticket is None:
        raise BadRequest(f"solo_mode: task {body.task_id!r} has no ticket; set solo_mode=false", param="solo_mode")
    gen = config.gconfig
    temperature = 0.0 if gen.greedy else gen.temperature
    episode_id = new_id("ep")
    return RolloutRequest(
        episode_id=episode_id,
        group_id=episode_id,
        kind=Kind.DEMO if body.demonstration else Kind.EVAL,
        task=TaskRef(domain=body.domain, split=body.split, task_id=body.task_id, solo_mode=body.solo_mode),
        sampling=body.sampling or Sampling(temperature=temperature, top_p=gen.top_p, max_tokens=gen.max_new_tokens, seed=body.seed),
        max_steps=body.max_steps or config.econfig.max_steps,
        seed=body.seed,
        demonstration=body.demonstration,
    )


def _tasks(domain: str, split: str) -> tuple[DomainBackend, list[TaskSpec]]:
    try:
        backend = open_backend(domain)
        return backend, list(backend.tasks(split))
    except UnknownDomain as error:
        raise BadRequest(str(error), param="domain") from error
    except UnknownSplit as error:
        raise BadRequest(str(error), param="split") from error
