"""Owns finding an episode's task and making its world. What takes long (importing a package, parsing tasks) never runs on the event loop.

Refuses what cannot be played before anything is spent on it.
"""

import asyncio
from dataclasses import dataclass

from services.agent_runner.conversation.messages import Message, read_history
from services.agent_runner.conversation.offloop import off_loop
from services.agent_runner.conversation.thinking import ThinkingSession
from services.agent_runner.domains import BackendName, DomainBackend, Retrieval, Session, TaskSpec, open_backend, warm_up
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import TaskRef


class Unplayable(ValueError):
    """The named task does not exist, or cannot be played this way."""


@dataclass(frozen=True, slots=True)
class World:
    """A task, and a session in the task's initial state."""

    backend: DomainBackend
    task: TaskSpec
    session: Session
    history: tuple[Message, ...]
    """What the conversation begins with."""


class Worlds:
    """Makes worlds. Packages and splits are loaded on first use, one at a time."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._backend: BackendName = config.econfig.backend
        self._retrieval: Retrieval = config.econfig.banking_retrieval
        self._thinking = config.econfig.add_thinking_tool
        self._timeout_s = config.services.agent_runner.tool_timeout_s
        self._loaded: dict[tuple[str, str], DomainBackend] = {}
        self._loading = asyncio.Lock()

    async def find(self, ref: TaskRef) -> tuple[DomainBackend, TaskSpec]:
        """The back end and the task. Raises `Unplayable`, `UnknownDomain`, `UnknownSplit`, `UnknownTask`."""
        backend = await self._loaded_backend(ref.domain, ref.split)
        task = backend.task(ref.split, ref.task_id)
        if ref.solo_mode and task.ticket is None:
            raise Unplayable(f"task_id: {ref.task_id!r} has no ticket, so it cannot be played solo")
        return backend, task

    async def make(self, backend: DomainBackend, task: TaskSpec, *, solo: bool) -> World:
        """A fresh world. Raises ValueError for an initial state that is impossible, `offloop.Stuck`."""
        session = await off_loop(backend.inline, self._timeout_s, "making the session", lambda: backend.new_session(task, solo=solo))
        history = tuple(read_history(raw) for raw in task.message_history)
        return World(backend, task, ThinkingSession(session) if self._thinking else session, history)

    async def _loaded_backend(self, domain: str, split: str) -> DomainBackend:
        key = (domain, split)
        if key not in self._loaded:
            async with self._loading:
                if key not in self._loaded:
                    self._loaded[key] = await asyncio.to_thread(self._load, domain, split)
        return self._loaded[key]

    def _load(self, domain: str, split: str) -> DomainBackend:
        backend = open_backend(domain, self._backend, retrieval=self._retrieval)
        warm_up(backend, split)
        return backend
