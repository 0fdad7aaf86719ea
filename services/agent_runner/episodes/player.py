"""Owns one episode from rollout request to trajectory: the boundary where everything that goes wrong gets an owner.

What the policy did is scored or truncated; what others broke is `failed`, without a reward. Refuses to turn one into the other.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

from services.agent_runner.conversation.agent import DemonstratorAgent, PolicyAgent, Prompt
from services.agent_runner.conversation.demonstrator import Demonstrator
from services.agent_runner.conversation.messages import Json, read_record
from services.agent_runner.conversation.offloop import Stuck, off_loop
from services.agent_runner.conversation.orchestrator import Clock, ContextExceeded, Tools, play
from services.agent_runner.conversation.prompts import Openings
from services.agent_runner.conversation.protocol import Conversation, Role, Termination
from services.agent_runner.conversation.user import SimulatedUser, UserFailed
from services.agent_runner.domains import TaskSpec
from services.agent_runner.episodes.report import Run, Watch, trajectory_of
from services.agent_runner.episodes.world import World, Worlds
from services.agent_runner.proxy import Grant, ProxyClient
from services.agent_runner.records.rebuild import Difference, reexecute
from services.agent_runner.reward.evaluator import Outcome, References, basis_of, evaluate, judged, needs_judge, premature
from services.agent_runner.reward.judge import Judge, JudgeFailed, open_judge
from services.common.config import ExperimentConfig
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.ids import session_id
from services.common.wire.rollouts import Failure, Owner, RewardInfo, RolloutRequest, TaskStamp, Trajectory

log = logging.getLogger(__name__)

STOPPED = frozenset({Termination.USER_STOP, Termination.AGENT_STOP})
FAULTS_OF = {Role.AGENT: Owner.INFRA, Role.USER: Owner.USER, Role.ENV: Owner.ENV}
"""Whose fault it is when a turn does not come about. What the policy says is never one: behind its turn stand proxy and servers."""
ABANDON_S = 2.0
"""How long a cancelled episode may take to seal its session."""


class EpisodeFailed(Exception):
    """Somebody other than the policy broke the episode."""

    def __init__(self, who: Owner, why: str) -> None:
        super().__init__(why)
        self.failure = Failure(who=who, why=why[:2000])


class EpisodePlayer:
    """Plays episodes. Holds only clients, caches and limits, so any number may be played at once."""

    def __init__(self, config: ExperimentConfig, proxy: ProxyClient, users: ServiceClient, judge: Judge | None = None) -> None:
        self._config = config
        self._proxy = proxy
        self._users = users
        self._judge = judge or open_judge(config.econfig)
        self._worlds = Worlds(config)
        self._openings = Openings(thinking=config.econfig.add_thinking_tool)
        self._references = References()
        # A little more than the service's own deadline, so that its verdict arrives.
        self._user_timeout_s = config.services.user_simulator.turn_timeout_s + 5
        self._tool_timeout_s = config.services.agent_runner.tool_timeout_s
        self._timeout_s = config.services.agent_runner.episode_timeout_s

    async def close(self) -> None:
        """Closes the judge's connections; the other clients belong to whoever made them."""
        if self._judge is not None:
            await self._judge.close()

    async def play(self, request: RolloutRequest, *, watch: Watch | None = None, resume: Sequence[Json] | None = None) -> Trajectory:
        """One episode, end to end. Raises nothing but CancelledError.

        ``watch`` is told of every event as (kind, data): ``started``, ``message`` (as in the trajectory), ``turn``, ``scored``, ``failed``.
        ``resume`` are messages of a trajectory from its beginning: the episode goes on live where they end.
        """
        run = Run(request, session_id(request.episode_id, request.attempt), watch or _unwatched)
        run.watch("started", {"episode_id": request.episode_id, "attempt": request.attempt, "task": request.task.model_dump(mode="json")})
        failure = None
        try:
            await self._scored(run, resume or ())
        except asyncio.CancelledError:
            await self._abandon(run)
            raise
        except EpisodeFailed as error:
            failure = error.failure
        except (RemoteError, Stuck) as error:
            failure = Failure(who=_blamed(run), why=str(error)[:2000])
        except Exception as error:
            log.exception("episode %s failed", request.episode_id)
            failure = Failure(who=_blamed(run), why=repr(error)[:2000])
        run.note_messages()
        trajectory = trajectory_of(run, await self._sealed(run, failure), self._config)
        run.watch("failed" if trajectory.failure else "scored", _verdict(trajectory))
        return trajectory

    async def _scored(self, run: Run, resume: Sequence[Json]) -> None:
        run.preparing = Owner.ENV
        world = await self._begun(run, resume)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                await self._converse(run, world)
        except TimeoutError:
            if not limit.expired():
                raise
            _time_is_up(run, self._timeout_s)
        run.preparing = Owner.ENV
        started = time.monotonic()
        try:
            await self._evaluated(run, world)
        finally:
            run.evaluate_s = time.monotonic() - started

    async def _begun(self, run: Run, resume: Sequence[Json]) -> World:
        """The episode's world and conversation. Raises `EpisodeFailed`: whatever is wrong here, the policy has not even begun."""
        try:
            backend, task = await self._worlds.find(run.request.task)
            run.stamp = TaskStamp(source=backend.source, digest=task.digest)
            self._refuse_unjudgeable(task)
            world = await self._worlds.make(backend, task, solo=run.request.task.solo_mode)
            env = self._config.econfig
            run.conversation = Conversation(
                solo=run.request.task.solo_mode,
                max_steps=run.request.max_steps,
                max_errors=env.max_errors,
                history=world.history,
                enforce=env.enforce_communication_protocol,
            )
            if resume:
                await self._resume(run.conversation, world, resume)
            run.n_given = len(run.conversation.messages)
        except EpisodeFailed:
            raise
        except Exception as error:
            raise EpisodeFailed(Owner.ENV, f"{type(error).__name__}: {error}") from error
        run.note_messages()
        return world

    def _refuse_unjudgeable(self, task: TaskSpec) -> None:
        if self._judge is None and needs_judge(task, basis_of(task, self._config.econfig.retail_reward)):
            remedy = "set econfig.judge_llm" + (", or econfig.retail_reward=db" if task.domain == "retail" else "")
            raise EpisodeFailed(Owner.JUDGE, f"task {task.task_id}: its NL assertions need a judge and none is configured; {remedy}")

    async def _resume(self, conversation: Conversation, world: World, recorded: Sequence[Json]) -> None:
        """Brings conversation and world to where the recorded messages end. Raises ValueError where they cannot get there."""
        given = conversation.n_given
        beginning = [(raw.get("role"), raw.get("content")) for raw in recorded[:given]]
        if beginning != [(message.role, message.content) for message in conversation.messages]:
            raise ValueError("resume: the messages do not begin as this task's conversations do")

        def again() -> list[Difference]:
            return reexecute(world.session, recorded, skip=given)

        differences = await off_loop(world.backend.inline, self._tool_timeout_s, "making the recorded calls again", again)
        if differences:
            raise ValueError(f"resume: the world is not what it was, {len(differences)} results differ; first {differences[0]}")
        messages = [read_record(raw) for raw in recorded]
        conversation.said(messages[given:])
        if conversation.termination is not None:
            raise ValueError(f"resume: the messages end the conversation ({conversation.termination.value}); leave out the last turn")

    async def _converse(self, run: Run, world: World) -> None:
        run.preparing = Owner.INFRA
        grant = await self._proxy.open(run.session_id, ttl_s=self._timeout_s + 300)
        run.opened = True
        agent = self._agent(run, grant, world)
        solo = run.request.task.solo_mode
        user = None if solo else SimulatedUser(self._users, world.backend, world.task, run.request.seed, self._user_timeout_s)
        tools = Tools(world.session, world.backend.inline, self._tool_timeout_s)
        run.trace.on_step = lambda role, seconds: run.stepped(role, seconds, agent.version)
        run.preparing = None
        try:
            await play(run.conversation, agent, user, tools, run.trace)
        except UserFailed as error:
            run.failed_turns.append(error.fault.value)
            raise EpisodeFailed(Owner.USER, str(error)) from error
        except ContextExceeded as error:
            raise EpisodeFailed(Owner.INFRA, f"the policy's context cannot hold the prompt, raise its length: {error}") from error
        finally:
            run.versions = agent.versions
            run.trace.format_errors += agent.format_errors

    def _agent(self, run: Run, grant: Grant, world: World) -> PolicyAgent | DemonstratorAgent:
        request = run.request
        solo = request.task.solo_mode
        prompt = Prompt(self._openings.of(world.backend, world.task, solo=solo))
        if request.demonstration is None:
            return PolicyAgent(self._proxy, grant, prompt, request.sampling, request.seed)
        demonstrator = Demonstrator(world.task, request.demonstration.quality, request.seed, solo=solo)
        return DemonstratorAgent(self._proxy, grant, prompt, demonstrator)

    async def _evaluated(self, run: Run, world: World) -> None:
        """Sets the reward. Raises `EpisodeFailed`; where the judge failed, what is known without it stays in ``run.reward``."""
        conversation, termination = run.conversation, run.conversation.termination
        assert termination is not None
        if termination is Termination.USER_ERROR:
            raise EpisodeFailed(Owner.USER, conversation.detail)
        basis = basis_of(world.task, self._config.econfig.retail_reward)

        def checked() -> RewardInfo:
            outcome = Outcome.of(world.session, conversation.messages)
            run.end_state = list(outcome.end_state or ())
            if termination not in STOPPED:
                return premature(world.task, ": ".join(filter(None, (termination.value, conversation.detail))), basis)
            return evaluate(world.backend, world.task, outcome, basis=basis, references=self._references)

        run.reward = await off_loop(world.backend.inline, self._tool_timeout_s, "the evaluation", checked)
        if run.reward.pending:
            run.reward = await self._with_judgement(run, world.task, run.reward)

    async def _with_judgement(self, run: Run, task: TaskSpec, info: RewardInfo) -> RewardInfo:
        assert self._judge is not None, "tasks that need a judge are refused without one"
        try:
            return judged(info, await self._judge.decide(run.conversation.messages, task.nl_assertions))
        except JudgeFailed as error:
            raise EpisodeFailed(Owner.JUDGE, str(error)) from error

    async def _sealed(self, run: Run, failure: Failure | None) -> Failure | None:
        """Seals the session whatever happened. An episode whose tokens cannot be sealed has failed, too."""
        if not run.opened:
            return failure
        try:
            await self._proxy.seal(run.session_id)
        except RemoteError as error:
            return failure or Failure(who=Owner.INFRA, why=f"the session could not be sealed: {error}"[:2000])
        return failure

    async def _abandon(self, run: Run) -> None:
        """Ends a cancelled episode. Its call in flight is aborted by the lost connection; sealing keeps later ones out."""
        run.note_messages()
        run.watch("failed", {"who": Owner.INFRA.value, "why": "cancelled"})
        if not run.opened:
            return
        try:
            async with asyncio.timeout(ABANDON_S):
                await self._proxy.seal(run.session_id)
        except (TimeoutError, RemoteError) as error:
            log.info("session %s of a cancelled episode is left open: %r", run.session_id, error)


def _unwatched(kind: str, data: Json) -> None:
    """Nobody watches."""


def _blamed(run: Run) -> Owner:
    """Whose fault an error is: that of whoever was at work."""
    return run.preparing or FAULTS_OF[run.trace.clock.waiting_for]


def _time_is_up(run: Run, limit_s: float) -> None:
    """Whose fault a timeout is. A policy that answered all along was slow; whoever else ate half of the time has failed."""
    if run.preparing is not None:
        raise EpisodeFailed(run.preparing, f"timeout: no session within {limit_s:g} s")
    clock = run.trace.clock
    waited_s = time.monotonic() - clock.since
    silent = [role for role, spent_s in _shares(clock, waited_s).items() if spent_s > limit_s / 2]
    if silent:
        why = f"timeout: waited for the {silent[0]} for {_shares(clock, waited_s)[silent[0]]:.0f} s of the episode's {limit_s:.0f} s"
        raise EpisodeFailed(FAULTS_OF[silent[0]], why)
    run.conversation.cut(Termination.TIMEOUT, f"over {limit_s:g} s")


def _shares(clock: Clock, waited_s: float) -> dict[Role, float]:
    """Seconds by role that tell against it: of the agent only a turn that did not end, because its turns are the policy's own doing."""
    return {Role.USER: clock.user_s, Role.ENV: clock.env_s, Role.AGENT: waited_s if clock.waiting_for is Role.AGENT else 0.0}


def _verdict(trajectory: Trajectory) -> Json:
    return trajectory.model_dump(
        mode="json", include={"status", "reward", "reward_info", "termination_reason", "failure", "n_turns", "timings"}
    )
