"""Owns one episode from rollout request to trajectory: the boundary where everything that goes wrong gets an owner.

What the policy did is scored or truncated; what others broke is `failed`, without a reward. Refuses to turn one into the other.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from services.agent_runner.agent import DemonstratorAgent, PolicyAgent, Prompt
from services.agent_runner.demonstrator import Demonstrator
from services.agent_runner.domains import DomainBackend, Session, TaskSpec, open_backend
from services.agent_runner.evaluator import JudgeMissing, Outcome, ToolUse, evaluate, premature
from services.agent_runner.messages import for_record
from services.agent_runner.orchestrator import Clock, play
from services.agent_runner.prompts import system_prompt
from services.agent_runner.protocol import Conversation, Role, Termination
from services.agent_runner.proxy import Grant, ProxyClient
from services.agent_runner.user import SimulatedUser, UserFailed
from services.common.config import ExperimentConfig
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.ids import session_id
from services.common.wire.rollouts import Failure, Owner, RewardInfo, RolloutRequest, Status, TaskStamp, Timings, Trajectory

log = logging.getLogger(__name__)

STOPPED = frozenset({Termination.USER_STOP, Termination.AGENT_STOP})
TRUNCATED = frozenset({Termination.MAX_STEPS, Termination.TOO_MANY_ERRORS, Termination.CONTEXT, Termination.TIMEOUT})
"""Every other way to end is the policy's own doing and scored."""


class EpisodeFailed(Exception):
    """Somebody other than the policy broke the episode."""

    def __init__(self, who: Owner, why: str) -> None:
        super().__init__(why)
        self.failure = Failure(who=who, why=why[:2000])


@dataclass(slots=True)
class Run:
    """What is known of an episode so far; a trajectory can be written from it at any moment."""

    request: RolloutRequest
    conversation: Conversation
    session_id: str
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    clock: Clock = field(default_factory=Clock)
    evaluate_s: float = 0.0
    versions: set[int] = field(default_factory=set[int])
    stamp: TaskStamp = field(default_factory=lambda: TaskStamp(source="unknown", digest=""))
    opened: bool = False


class EpisodePlayer:
    """Plays episodes. Holds only clients and limits, so any number may be played at once."""

    def __init__(self, config: ExperimentConfig, proxy: ProxyClient, users: ServiceClient) -> None:
        self._proxy = proxy
        self._users = users
        self._max_errors = config.econfig.max_errors
        # A little more than the service's own deadline, so that its verdict arrives.
        self._user_timeout_s = config.services.user_simulator.turn_timeout_s + 5
        self._timeout_s = config.services.agent_runner.episode_timeout_s

    async def play(self, request: RolloutRequest) -> Trajectory:
        """One episode, end to end. Raises nothing but CancelledError."""
        run = Run(
            request=request,
            conversation=Conversation(solo=request.task.solo_mode, max_steps=request.max_steps, max_errors=self._max_errors),
            session_id=session_id(request.episode_id, request.attempt),
        )
        reward, failure = None, None
        try:
            reward = await self._scored(run)
        except EpisodeFailed as error:
            failure = error.failure
        except RemoteError as error:
            failure = Failure(who=Owner.INFRA, why=str(error)[:2000])
        except Exception as error:
            log.exception("episode %s failed", request.episode_id)
            failure = Failure(who=Owner.INFRA, why=repr(error)[:2000])
        return _trajectory(run, reward, await self._sealed(run, failure))

    async def _scored(self, run: Run) -> RewardInfo:
        backend, task, session = _environment(run)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                await self._converse(run, backend, task, session)
        except TimeoutError:
            if not limit.expired():
                raise
            _time_is_up(run, self._timeout_s)
        started = time.monotonic()
        try:
            return _reward(run.conversation, backend, task, session)
        finally:
            run.evaluate_s = time.monotonic() - started

    async def _converse(self, run: Run, backend: DomainBackend, task: TaskSpec, session: Session) -> None:
        grant = await self._proxy.open(run.session_id, ttl_s=self._timeout_s + 300)
        run.opened = True
        solo = run.request.task.solo_mode
        prompt = Prompt(system_prompt(backend.policy(solo=solo), task.ticket if solo else None), backend.tool_schemas(solo=solo))
        agent = self._agent(run, grant, prompt, task)
        user = None if solo else SimulatedUser(self._users, backend, task, run.request.seed, self._user_timeout_s)
        try:
            await play(run.conversation, agent, user, session, run.clock)
        except UserFailed as error:
            raise EpisodeFailed(Owner.USER, str(error)) from error
        finally:
            run.versions = agent.versions

    def _agent(self, run: Run, grant: Grant, prompt: Prompt, task: TaskSpec) -> PolicyAgent | DemonstratorAgent:
        request = run.request
        if request.demonstration is None:
            return PolicyAgent(self._proxy, grant, prompt, request.sampling, request.seed)
        solo = request.task.solo_mode
        return DemonstratorAgent(self._proxy, grant, prompt, Demonstrator(task, request.demonstration.quality, request.seed, solo=solo))

    async def _sealed(self, run: Run, failure: Failure | None) -> Failure | None:
        """Seals the session whatever happened. An episode whose tokens cannot be sealed has failed, too."""
        if not run.opened:
            return failure
        try:
            await self._proxy.seal(run.session_id)
        except RemoteError as error:
            return failure or Failure(who=Owner.INFRA, why=f"the session could not be sealed: {error}"[:2000])
        return failure


def _environment(run: Run) -> tuple[DomainBackend, TaskSpec, Session]:
    """The task and its world. Raises `EpisodeFailed`: whatever is wrong here, the policy has not even begun."""
    ref = run.request.task
    try:
        backend = open_backend(ref.domain)
        task = next((task for task in backend.tasks(ref.split) if task.task_id == ref.task_id), None)
        if task is None:
            raise ValueError(f"task_id: {ref.domain}/{ref.split} has no task {ref.task_id!r}")
        run.stamp = TaskStamp(source=backend.source, digest=task.digest)
        if ref.solo_mode and task.ticket is None:
            raise ValueError(f"task_id: {ref.task_id!r} has no ticket, so it cannot be played solo")
        return backend, task, backend.new_session(task, solo=ref.solo_mode)
    except Exception as error:
        raise EpisodeFailed(Owner.ENV, f"{type(error).__name__}: {error}") from error


def _reward(conversation: Conversation, backend: DomainBackend, task: TaskSpec, session: Session) -> RewardInfo:
    assert conversation.termination is not None
    if conversation.termination not in STOPPED:
        reason = conversation.termination.value
        return premature(task, f"{reason}: {conversation.detail}" if conversation.detail else reason)
    outcome = Outcome(
        session=session,
        tool_uses=[ToolUse(call.name, call.arguments) for message in conversation.messages for call in message.tool_calls],
        agent_texts=[message.content or "" for message in conversation.messages if message.role == "assistant" and message.has_text],
    )
    try:
        return evaluate(backend, task, outcome)
    except JudgeMissing as error:
        raise EpisodeFailed(Owner.JUDGE, str(error)) from error
    except ValueError as error:
        raise EpisodeFailed(Owner.ENV, str(error)) from error


def _time_is_up(run: Run, limit_s: float) -> None:
    """Whose fault a timeout is. A policy that answered all along was slow; one silent turn that ate half the time is somebody's failure."""
    waiting_for = run.clock.waiting_for
    waited_s = time.monotonic() - run.clock.since if run.clock.since else limit_s
    if waited_s > limit_s / 2:
        owner = Owner.USER if waiting_for is Role.USER and run.clock.since else Owner.INFRA
        raise EpisodeFailed(owner, f"timeout: no answer from the {waiting_for} for {waited_s:.0f} s of the episode's {limit_s:.0f} s")
    run.conversation.cut(Termination.TIMEOUT, f"over {limit_s:g} s")


def _trajectory(run: Run, reward: RewardInfo | None, failure: Failure | None) -> Trajectory:
    request, conversation = run.request, run.conversation
    termination = conversation.termination
    status = Status.TRUNCATED if termination in TRUNCATED else Status.SCORED
    if failure is not None:
        status, reward = Status.FAILED, None
    clock = run.clock
    facts: dict[str, Any] = request.model_dump(
        include={"episode_id", "group_id", "sample_index", "group_size", "attempt", "kind", "task", "sampling", "seed", "demonstration"}
    )
    return Trajectory(
        **facts,
        stamp=run.stamp,
        status=status,
        reward=None if reward is None else reward.reward,
        reward_info=reward,
        termination_reason=f"failed_{failure.who}" if failure else str(termination),
        failure=failure,
        messages=[for_record(message) for message in conversation.messages],
        n_turns=conversation.turns,
        n_tool_errors=conversation.errors,
        session_id=run.session_id if run.opened else None,
        policy_versions=sorted(run.versions),
        timings=Timings(
            started_at=run.started_at,
            total_s=time.monotonic() - run.started,
            agent_s=clock.agent_s,
            user_s=clock.user_s,
            env_s=clock.env_s,
            evaluate_s=run.evaluate_s,
        ),
    )
