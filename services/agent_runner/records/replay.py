"""Owns replaying a trajectory: its recorded actions in a fresh world (`reexecute`), its reward again (`rescore`), and the point from which
it can be continued live (`relive`).

Refuses a trajectory whose task or back end is not what this process has: a difference would say nothing about the episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.agent_runner.conversation.messages import Json, Malformed, Message, read_record
from services.agent_runner.conversation.offloop import Stuck, off_loop
from services.agent_runner.conversation.orchestrator import unread
from services.agent_runner.conversation.protocol import Termination
from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.episodes.world import World, Worlds
from services.agent_runner.records.rebuild import Difference, recorded_steps, reexecute
from services.agent_runner.reward.evaluator import (
    JUDGED,
    RETAIL_PARTS,
    Outcome,
    References,
    RetailReward,
    basis_of,
    evaluate,
    judged,
    premature,
)
from services.agent_runner.reward.judge import Judge, JudgeFailed
from services.common.config import ExperimentConfig
from services.common.errors import BadRequest, Conflict, NotFound, UpstreamFailed
from services.common.wire.rollouts import RewardInfo, Status, Trajectory, Wire

STOPPED = frozenset({Termination.USER_STOP.value, Termination.AGENT_STOP.value})


class Mode(StrEnum):
    """What is done with the trajectory."""

    REEXECUTE = "reexecute"
    RESCORE = "rescore"
    RELIVE = "relive"


class Result(Wire):
    """What a tool call gave."""

    content: str
    error: bool


class DifferentResult(Wire):
    """A tool call whose result is not the recorded one."""

    index: int
    """Of the result in ``messages``."""
    turn: int
    """The agent's turn it happened in, 0 the first."""
    tool: str
    expected: Result
    got: Result


class StateComparison(Wire):
    """Digests of the agent's and the user's database at the end."""

    expected: list[str]
    got: list[str]
    equal: bool


class RewardComparison(Wire):
    """The recorded reward beside the one computed now."""

    expected: float | None
    got: float | None
    equal: bool


class ReplayReport(Wire):
    """What came of `reexecute` or `rescore`."""

    episode_id: str
    mode: Mode
    equal: bool
    """Whether everything that was compared is equal."""
    source: str
    n_results: int
    """Tool results compared."""
    n_differences: int
    first_difference: DifferentResult | None = None
    end_state: StateComparison | None = None
    """Absent where the trajectory has none, as that of a failed episode."""
    reward: RewardComparison | None = None
    """Absent where the episode failed before it ended."""
    reward_info: RewardInfo | None = None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A trajectory's world after its recorded actions."""

    world: World
    messages: list[Message]
    differences: list[Difference]
    end_state: list[str]


class Replays:
    """Replays trajectories. Errors are `BadRequest`, `NotFound`, `Conflict` (another task or back end) and `UpstreamFailed` (the judge)."""

    def __init__(self, config: ExperimentConfig, judge: Judge | None) -> None:
        self._config = config
        self._judge = judge
        self._worlds = Worlds(config)
        self._references = References()
        self._timeout_s = config.services.agent_runner.tool_timeout_s

    async def reexecute(self, trajectory: Trajectory, *, any_source: bool = False) -> ReplayReport:
        """Makes the recorded calls again and compares results, end state and reward. What a judge decided then stands."""
        rebuilt = await self._rebuilt(trajectory, any_source=any_source)
        decided = [check for check in (trajectory.reward_info.checks if trajectory.reward_info else ()) if check.kind == JUDGED]
        info = None
        if trajectory.status is not Status.FAILED:
            info = await self._evaluated(trajectory, rebuilt, self._variant(trajectory))
            info = judged(info, decided) if info.pending and decided else info
        return _report(Mode.REEXECUTE, trajectory, rebuilt, info)

    async def rescore(self, trajectory: Trajectory, *, retail_reward: RetailReward | None = None, any_source: bool = False) -> ReplayReport:
        """Evaluates again, the judge included; ``retail_reward`` chooses another variant of retail's reward."""
        if trajectory.status is Status.FAILED and not _ended(trajectory):
            why = trajectory.failure.why if trajectory.failure else ""
            raise Conflict(f"episode {trajectory.episode_id} failed before it ended ({why}); relive it instead", code="nothing_to_score")
        rebuilt = await self._rebuilt(trajectory, any_source=any_source)
        info = await self._evaluated(trajectory, rebuilt, retail_reward or self._config.econfig.retail_reward)
        if info.pending:
            info = await self._with_judgement(rebuilt, info)
        return _report(Mode.RESCORE, trajectory, rebuilt, info)

    async def resume_at(self, trajectory: Trajectory, turn: int, *, any_source: bool = False) -> list[Json]:
        """The messages before the agent's turn ``turn``, from which an episode can go on live."""
        _, task = await self._found(trajectory, any_source=any_source)
        given = _given(trajectory, task)
        turns = [index for index, message in enumerate(trajectory.messages) if index >= given and message["role"] == "assistant"]
        if not 0 <= turn < len(turns):
            raise BadRequest(f"turn: the agent has turns 0 to {len(turns) - 1} in {trajectory.episode_id}, not {turn}", param="turn")
        return trajectory.messages[: turns[turn]]

    async def _found(self, trajectory: Trajectory, *, any_source: bool) -> tuple[DomainBackend, TaskSpec]:
        ref, stamp = trajectory.task, trajectory.stamp
        try:
            backend, task = await self._worlds.find(ref)
        except ValueError as error:
            raise NotFound(f"{ref.domain}/{ref.split} {ref.task_id!r} is not here: {error}", code="task_unknown") from error
        if task.digest != stamp.digest:
            raise Conflict(
                f"task {ref.task_id}: its data here has digest {task.digest[:12]}, the trajectory was made with "
                f"{stamp.digest[:12] or 'none'} ({stamp.source}); set TAU2_DATA_DIR, the task file or the package version to what it "
                "was then",
                code="other_task_data",
            )
        if backend.source != stamp.source and not any_source:
            raise Conflict(
                f"stamp.source: the trajectory was made with {stamp.source!r}, this runner has {backend.source!r}; set econfig.backend, "
                "TAU2_DATA_DIR or the package version to what it was then, or set any_source=true to compare the two",
                code="other_source",
            )
        return backend, task

    async def _rebuilt(self, trajectory: Trajectory, *, any_source: bool) -> Rebuilt:
        backend, task = await self._found(trajectory, any_source=any_source)
        try:
            world = await self._worlds.make(backend, task, solo=trajectory.task.solo_mode)
            messages = [_read(raw) for raw in trajectory.messages]

            def work() -> tuple[list[Difference], list[str]]:
                differences = reexecute(world.session, trajectory.messages, skip=_given(trajectory, task))
                return differences, list(world.session.fingerprint())

            differences, end_state = await off_loop(backend.inline, self._timeout_s, "making the recorded calls again", work)
        except (ValueError, KeyError, Stuck) as error:
            raise BadRequest(f"messages: they are no recorded conversation of this task: {error!r}", param="messages") from error
        return Rebuilt(world, messages, differences, end_state)

    async def _evaluated(self, trajectory: Trajectory, rebuilt: Rebuilt, variant: RetailReward) -> RewardInfo:
        world = rebuilt.world
        basis = basis_of(world.task, variant)
        if not _ended(trajectory):
            return premature(world.task, trajectory.termination_reason, basis)
        outcome = Outcome.of(world.session, rebuilt.messages)

        def work() -> RewardInfo:
            return evaluate(world.backend, world.task, outcome, basis=basis, references=self._references)

        return await off_loop(world.backend.inline, self._timeout_s, "the evaluation", work)

    async def _with_judgement(self, rebuilt: Rebuilt, info: RewardInfo) -> RewardInfo:
        if self._judge is None:
            raise Conflict("the reward needs a judge and none is configured; set econfig.judge_llm, or retail_reward", code="no_judge")
        try:
            return judged(info, await self._judge.decide(rebuilt.messages, rebuilt.world.task.nl_assertions))
        except JudgeFailed as error:
            raise UpstreamFailed(f"the judge did not decide: {error}", code="judge_failed") from error

    def _variant(self, trajectory: Trajectory) -> RetailReward:
        """The variant that the reward was computed with."""
        known: dict[str, RetailReward] = {name: name for name in RETAIL_PARTS}
        return known.get(trajectory.reward_variant, self._config.econfig.retail_reward)


def _report(mode: Mode, trajectory: Trajectory, rebuilt: Rebuilt, info: RewardInfo | None) -> ReplayReport:
    expected, got = trajectory.end_state, rebuilt.end_state
    state = StateComparison(expected=expected, got=got, equal=expected == got) if expected else None
    # Pending, the number is only an upper bound.
    now = None if info is None or info.pending else info.reward
    reward = None if info is None else RewardComparison(expected=trajectory.reward, got=now, equal=trajectory.reward == now)
    differences = rebuilt.differences
    return ReplayReport(
        episode_id=trajectory.episode_id,
        mode=mode,
        equal=not differences and (state is None or state.equal) and (reward is None or reward.equal),
        source=rebuilt.world.backend.source,
        n_results=len(recorded_steps(trajectory.messages, skip=_given(trajectory, rebuilt.world.task))),
        n_differences=len(differences),
        first_difference=_different(trajectory, rebuilt.world.task, differences[0]) if differences else None,
        end_state=state,
        reward=reward,
        reward_info=info,
    )


def _different(trajectory: Trajectory, task: TaskSpec, found: Difference) -> DifferentResult:
    before = trajectory.messages[_given(trajectory, task) : found.index]
    return DifferentResult(
        index=found.index,
        turn=max(0, sum(message["role"] == "assistant" for message in before) - 1),
        tool=found.tool,
        expected=Result(content=found.recorded.content, error=found.recorded.error),
        got=Result(content=found.now.content, error=found.now.error),
    )


def _given(trajectory: Trajectory, task: TaskSpec) -> int:
    """Messages that were there before anybody spoke: the task's history, or the greeting."""
    history: Sequence[Json] = task.message_history
    return len(history) if history else int(not trajectory.task.solo_mode)


def _ended(trajectory: Trajectory) -> bool:
    """Whether one of the two sides ended the conversation. Where the judge failed after that, the rest of the reward is there."""
    return trajectory.termination_reason in STOPPED or (trajectory.reward_info is not None and bool(trajectory.reward_info.pending))


def _read(raw: Json) -> Message:
    try:
        return read_record(raw)
    except Malformed:
        return unread(raw)
