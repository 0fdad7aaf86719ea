"""Owns the HTTP form of replays (docs/replay.md)."""

from functools import partial

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, model_validator

from services.agent_runner.episodes.adhoc import AdhocEpisodes
from services.agent_runner.records.replay import Mode, ReplayReport, Replays
from services.agent_runner.reward.evaluator import RetailReward
from services.agent_runner.routes.common import domains_loaded, stored
from services.agent_runner.routes.episodes import Started
from services.common.config import ExperimentConfig
from services.common.errors import NotFound
from services.common.ids import new_id
from services.common.wire.rollouts import Id, Kind, Lineage, RolloutRequest, Sampling, Trajectory, Wire

router = APIRouter(prefix="/v1", tags=["replays"], dependencies=[Depends(domains_loaded)])


class ReplayBody(Wire):
    """POST /v1/replays."""

    mode: Mode
    episode_id: Id | None = None
    """A trajectory of the store; or give its body."""
    trajectory: Trajectory | None = None
    turn: int | None = Field(default=None, ge=0)
    """relive: the agent's turn that is made anew, 0 the first; all before it stay as they were."""
    sampling: Sampling | None = None
    """relive; default that of the trajectory."""
    seed: int | None = None
    """relive; default that of the trajectory."""
    max_steps: int | None = Field(default=None, ge=1)
    """relive; default that of the config. The recorded steps count."""
    retail_reward: RetailReward | None = None
    """rescore: another variant of retail's reward."""
    any_source: bool = False
    """Compare although another back end or version made the trajectory."""

    @model_validator(mode="after")
    def _fits_its_mode(self) -> "ReplayBody":
        if (self.episode_id is None) == (self.trajectory is None):
            raise ValueError("give either episode_id or trajectory")
        if (self.turn is None) == (self.mode is Mode.RELIVE):
            raise ValueError("turn: relive needs it, and no other mode has it")
        for name, mode in (("sampling", Mode.RELIVE), ("seed", Mode.RELIVE), ("max_steps", Mode.RELIVE), ("retail_reward", Mode.RESCORE)):
            if getattr(self, name) is not None and self.mode is not mode:
                raise ValueError(f"{name}: only for mode={mode.value}")
        return self


@router.post("/replays", responses={202: {"description": "relive: started; ask for it by its id", "model": Started}})
async def replay(request: Request, response: Response, body: ReplayBody, wait: bool = False) -> ReplayReport | Trajectory | Started:
    """Replays a trajectory. reexecute and rescore answer with what they found; relive as POST /v1/episodes does."""
    replays: Replays = request.app.state.replays
    trajectory = body.trajectory or await _stored(request, body.episode_id or "")
    if body.mode is Mode.REEXECUTE:
        return await replays.reexecute(trajectory, any_source=body.any_source)
    if body.mode is Mode.RESCORE:
        return await replays.rescore(trajectory, retail_reward=body.retail_reward, any_source=body.any_source)
    assert body.turn is not None, "checked with the body"
    messages = await replays.resume_at(trajectory, body.turn, any_source=body.any_source)
    episodes: AdhocEpisodes = request.app.state.adhoc
    rollout = _relived(body, trajectory, body.turn, request.app.state.config)
    task = episodes.start(rollout, partial(request.app.state.player.play, resume=messages))
    if wait:
        return await task
    response.status_code = 202
    return Started(episode_id=rollout.episode_id, state="queued")


async def _stored(request: Request, episode_id: str) -> Trajectory:
    trajectory = await stored(request, episode_id)
    if trajectory is None:
        raise NotFound(f"episode_id: the store has no trajectory of {episode_id!r}", param="episode_id")
    return trajectory


def _relived(body: ReplayBody, trajectory: Trajectory, turn: int, config: ExperimentConfig) -> RolloutRequest:
    episode_id = new_id("ep")
    return RolloutRequest(
        episode_id=episode_id,
        group_id=episode_id,
        # Also where the original was a demonstration: from here on it is the policy that speaks.
        kind=Kind.EVAL,
        task=trajectory.task,
        sampling=body.sampling or trajectory.sampling,
        seed=trajectory.seed if body.seed is None else body.seed,
        max_steps=body.max_steps or config.econfig.max_steps,
        lineage=Lineage(episode_id=trajectory.episode_id, attempt=trajectory.attempt, turn=turn),
    )
