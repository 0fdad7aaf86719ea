"""Owns the do-nothing floor of a task set: what an agent earns that says one line, calls no tool and lets the episode end.

It stands beside every mean reward, because on some domains it is far from 0. Computed by the same evaluator on fresh sessions, without any
model: an assertion that only a judge could decide counts as not met. Refuses to be a baseline of anything but doing nothing.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.agent_runner.conversation.messages import Message, read_history
from services.agent_runner.conversation.protocol import GREETING, STOP
from services.agent_runner.domains import DomainBackend, TaskSpec
from services.agent_runner.reward.evaluator import Outcome, References, RetailReward, basis_of, evaluate

LINE = "I am sorry, but I am not able to help with this."


@dataclass(frozen=True, slots=True)
class Floor:
    """The floor of some tasks."""

    mean: float | None
    """Mean reward over the tasks; None where there are none that can be played this way."""
    rewards: dict[str, float] = field(default_factory=dict[str, float])
    """Task id -> reward of doing nothing."""

    @property
    def n_tasks(self) -> int:
        """Over how many tasks the mean goes; with solo, those with a ticket."""
        return len(self.rewards)


def do_nothing_floor(
    backend: DomainBackend, tasks: Sequence[TaskSpec], *, solo: bool, retail_reward: RetailReward, references: References | None = None
) -> Floor:
    """The floor of ``tasks``: well under a millisecond a task, the first time some milliseconds where a reference state is new."""
    references = references or References()
    playable = [task for task in tasks if not solo or task.ticket is not None]
    rewards = {task.task_id: _reward(backend, task, solo, basis_of(task, retail_reward), references) for task in playable}
    return Floor(sum(rewards.values()) / len(rewards) if rewards else None, rewards)


def _reward(backend: DomainBackend, task: TaskSpec, solo: bool, basis: Sequence[str], references: References) -> float:
    messages = [read_history(raw) for raw in task.message_history] or ([] if solo else [Message("assistant", GREETING)])
    messages.append(Message("assistant", STOP if solo else LINE))
    info = evaluate(backend, task, Outcome.of(backend.new_session(task, solo=solo), messages), basis=basis, references=references)
    return 0.0 if info.pending else info.reward


class Floors:
    """Floors of whole splits, each computed once per process, in a thread."""

    def __init__(self, retail_reward: RetailReward) -> None:
        self._retail_reward: RetailReward = retail_reward
        self._known: dict[tuple[str, str, str, bool], Floor] = {}
        self._one_at_a_time = asyncio.Lock()

    async def of(self, backend: DomainBackend, split: str, *, solo: bool) -> Floor:
        """The floor of a split. Raises `UnknownSplit`."""
        key = (backend.source, backend.domain, split, solo)
        async with self._one_at_a_time:
            if key not in self._known:
                self._known[key] = await asyncio.to_thread(self._computed, backend, split, solo)
        return self._known[key]

    def _computed(self, backend: DomainBackend, split: str, solo: bool) -> Floor:
        return do_nothing_floor(backend, backend.tasks(split), solo=solo, retail_reward=self._retail_reward)
