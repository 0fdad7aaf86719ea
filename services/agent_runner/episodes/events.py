"""Owns what is known of an episode while it runs here, for people who watch: its state, its messages so far, a numbered log of events.

The log is a bounded window. A reader that falls behind is told how many events it missed (`gap`) and goes on from the oldest one kept.
Refuses to make an episode wait for its readers.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.common.wire.rollouts import RolloutRequest, Trajectory

Json = dict[str, Any]

EVENTS_KEPT = 256
"""An episode of 100 turns has about 400; its messages are all in `EpisodeLog.messages`."""
GAP, FINISHED, STOPPED = "gap", "finished", "stopped"
"""Kinds of event that are made here. Those of the player are listed at `episode.EpisodePlayer.play`."""
MESSAGE, TURN = "message", "turn"


class Phase(StrEnum):
    """Where an episode is."""

    QUEUED = "queued"
    """Accepted here, and waiting for its turn to begin."""
    RUNNING = "running"
    FINISHED = "finished"
    """It has a trajectory, or runs here no more."""


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.RUNNING, Phase.FINISHED}),
    Phase.RUNNING: frozenset({Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}


class IllegalPhase(Exception):
    """A step that the table does not have; always our own fault."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``number`` grows by one with each event of an episode, from 1."""

    number: int
    kind: str
    data: Json


class EpisodeLog:
    """One episode. `watch` is given to whoever plays it."""

    def __init__(self, request: RolloutRequest, kept: int = EVENTS_KEPT) -> None:
        self.request = request
        self.phase = Phase.QUEUED
        self.messages: list[Json] = []
        """In the form of `Trajectory.messages`."""
        self.turn = 0
        """Calls of the agent so far."""
        self.trajectory: Trajectory | None = None
        self._versions: set[int] = set()
        self._events: deque[Event] = deque(maxlen=kept)
        self._last = 0
        self._grown: asyncio.Event | None = None

    @classmethod
    def of(cls, trajectory: Trajectory) -> "EpisodeLog":
        """The log of an episode that is known by its trajectory alone, all of it kept."""
        wanted = trajectory.model_dump(include=RolloutRequest.model_fields.keys() & Trajectory.model_fields.keys())
        log = cls(RolloutRequest(**wanted), kept=len(trajectory.messages) + 1)
        log.begin()
        for message in trajectory.messages:
            log.watch(MESSAGE, message)
        log.turn = trajectory.n_turns
        log.finish(trajectory)
        return log

    @property
    def versions(self) -> list[int]:
        """Policy versions that have answered, ascending."""
        return sorted(self._versions)

    def begin(self) -> None:
        """The episode is being played from now on."""
        self._move(Phase.RUNNING)

    def watch(self, kind: str, data: Json) -> None:
        """Takes in one event."""
        if kind == MESSAGE:
            self.messages.append(data)
        elif kind == TURN:
            self.turn = data["turn"]
            self._versions |= {data["policy_version"]} if data.get("policy_version") is not None else set()
        self._last += 1
        self._events.append(Event(self._last, kind, data))
        if self._grown is not None:
            self._grown.set()
            self._grown = None

    def finish(self, trajectory: Trajectory) -> None:
        """The last event: how the episode ended."""
        self._move(Phase.FINISHED)
        self.trajectory = trajectory
        self.watch(FINISHED, trajectory.model_dump(mode="json", exclude={"messages"}))

    def stop(self, why: str) -> None:
        """The last event of an episode that was taken away from here and has no trajectory."""
        self._move(Phase.FINISHED)
        self.watch(STOPPED, {"why": why})

    def after(self, seen: int) -> list[Event]:
        """The events after number ``seen``, the first of them a `gap` where some are no longer kept.

        A ``seen`` beyond the last event comes from another run of the episode, so everything that is kept is new.
        """
        if seen > self._last:
            seen = 0
        oldest = self._events[0].number if self._events else self._last + 1
        missed = oldest - seen - 1
        found = [event for event in self._events if event.number > seen]
        return [Event(oldest - 1, GAP, {"missed": missed}), *found] if missed > 0 else found

    async def grown(self) -> None:
        """Waits for the next event; the caller bounds it."""
        if self._grown is None:
            self._grown = asyncio.Event()
        await self._grown.wait()

    def _move(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise IllegalPhase(f"episode {self.request.episode_id} is {self.phase}: it cannot become {phase}")
        self.phase = phase
