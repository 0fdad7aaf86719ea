"""Owns the HTTP form of episodes: running one, looking at it, following it, cancelling it. Checks names before anything is started."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from services.agent_runner.catalog import Catalog
from services.agent_runner.episodes.adhoc import AdhocEpisodes
from services.agent_runner.episodes.events import EpisodeLog, Phase
from services.agent_runner.episodes.live import LiveEpisodes
from services.agent_runner.routes.common import domains_loaded, stored
from services.agent_runner.routes.sse import Streams
from services.common.config import ExperimentConfig
from services.common.errors import BadRequest, Conflict, NotFound
from services.common.ids import new_id
from services.common.wire.rollouts import Demonstration, Kind, RolloutRequest, Sampling, TaskRef, Trajectory, Wire

router = APIRouter(prefix="/v1", tags=["episodes"], dependencies=[Depends(domains_loaded)])


class EpisodeBody(Wire):
    """POST /v1/episodes. What is left out comes from the experiment's config."""

    domain: str | None = None
    split: str | None = None
    """Default: the split that the config trains on, else the domain's own default."""
    task_id: str
    solo_mode: bool | None = None
    sampling: Sampling | None = None
    seed: int = 0
    max_steps: int | None = Field(default=None, ge=1)
    demonstration: Demonstration | None = None


class EpisodeView(Wire):
    """GET /v1/episodes/{id}. ``turn`` and ``messages`` are those so far while it runs; a finished episode has them in its trajectory."""

    episode_id: str
    state: Phase
    attempt: int
    task: TaskRef
    turn: int
    messages: list[dict[str, Any]] = []
    trajectory: Trajectory | None = None


class Started(Wire):
    """The answer to an episode that is not waited for, and to a cancel."""

    episode_id: str
    state: str


@router.post("/episodes", responses={202: {"description": "Started; ask for it by its id", "model": Started}})
async def run_episode(request: Request, response: Response, body: EpisodeBody, wait: bool = False) -> Trajectory | Started:
    """Runs one episode outside the queue. With ``wait`` the answer is its trajectory, without 202 and its id."""
    episodes: AdhocEpisodes = request.app.state.adhoc
    rollout = await _request_of(body, request.app.state.config, request.app.state.catalog)
    task = episodes.start(rollout, request.app.state.player.play)
    if wait:
        return await task
    response.status_code = 202
    return Started(episode_id=rollout.episode_id, state=Phase.QUEUED)


@router.get("/episodes/{episode_id}")
async def get_episode(request: Request, episode_id: str) -> EpisodeView:
    """The state of an episode: how far it is, and its trajectory once it has ended."""
    log = await _log_of(request, episode_id)
    return EpisodeView(
        episode_id=episode_id,
        state=log.phase,
        attempt=log.request.attempt,
        task=log.request.task,
        turn=log.turn,
        messages=log.messages if log.trajectory is None else [],
        trajectory=log.trajectory,
    )


@router.get("/episodes/{episode_id}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def follow_episode(request: Request, episode_id: str, last_event_id: Annotated[int, Header(ge=0)] = 0) -> StreamingResponse:
    """What happens in an episode, as server-sent events that end with it. ``Last-Event-ID`` goes on after that event."""
    streams: Streams = request.app.state.streams
    log = await _log_of(request, episode_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(streams.open(log, last_event_id), media_type="text/event-stream", headers=headers)


@router.post("/episodes/{episode_id}/cancel", status_code=202)
async def cancel_episode(request: Request, episode_id: str) -> Started:
    """Ends an episode that runs here: its policy call is aborted, its trajectory is a final failure and never trained on."""
    live: LiveEpisodes = request.app.state.live
    if live.find(episode_id) is None and await stored(request, episode_id) is not None:
        raise Conflict(f"episode {episode_id} has ended; there is nothing to cancel", code="episode_ended")
    live.cancel(episode_id)
    return Started(episode_id=episode_id, state="cancelling")


async def _log_of(request: Request, episode_id: str) -> EpisodeLog:
    """The log of an episode; one that ended elsewhere or long ago is told again from its stored trajectory."""
    live: LiveEpisodes = request.app.state.live
    log = live.find(episode_id)
    if log is not None and (log.phase is not Phase.FINISHED or log.trajectory is not None):
        return log
    trajectory = await stored(request, episode_id)
    if trajectory is not None:
        return EpisodeLog.of(trajectory)
    if log is not None:
        return log
    raise NotFound(f"episode_id: no episode {episode_id!r} here or in the store", param="episode_id")


async def _request_of(body: EpisodeBody, config: ExperimentConfig, catalog: Catalog) -> RolloutRequest:
    """The rollout request of a body. Raises `BadRequest` and `NotFound` that name the field and what would be right."""
    domain = body.domain or config.econfig.domain
    split = body.split or await catalog.default_split(domain)
    _, task = await catalog.task(domain, split, body.task_id)
    solo = config.econfig.solo_mode if body.solo_mode is None else body.solo_mode
    if solo and task.ticket is None:
        raise BadRequest(f"solo_mode: task {body.task_id!r} has no ticket; set solo_mode=false", param="solo_mode")
    gen = config.gconfig
    temperature = 0.0 if gen.greedy else gen.temperature
    episode_id = new_id("ep")
    return RolloutRequest(
        episode_id=episode_id,
        group_id=episode_id,
        kind=Kind.DEMO if body.demonstration else Kind.EVAL,
        task=TaskRef(domain=domain, split=split, task_id=body.task_id, solo_mode=solo),
        sampling=body.sampling or Sampling(temperature=temperature, top_p=gen.top_p, max_tokens=gen.max_new_tokens, seed=body.seed),
        max_steps=body.max_steps or config.econfig.max_steps,
        seed=body.seed,
        demonstration=body.demonstration,
    )
