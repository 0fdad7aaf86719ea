"""What tests of whole episodes share: a player on given services, scripted policies, and back ends that misbehave on purpose."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from runner_fakes import Json, config_for

from services.agent_runner.conversation.demonstrator import Demonstrator
from services.agent_runner.domains import DomainBackend, TaskSpec, ToolResult
from services.agent_runner.episodes.player import EpisodePlayer
from services.agent_runner.proxy import ProxyClient
from services.common.http import ServiceClient
from services.common.wire.rollouts import Owner, Status, Trajectory


@asynccontextmanager
async def player(
    proxy_url: str,
    users_url: str = "http://127.0.0.1:9",
    retry_s: float = 2.0,
    econfig: Json | None = None,
    rollout: Json | None = None,
    **runner: float,
) -> AsyncIterator[EpisodePlayer]:
    """A player whose services lie at the given addresses."""
    config = config_for(proxy=proxy_url, users=users_url, econfig=econfig, rollout=rollout, **runner)
    async with ServiceClient("policy_proxy", proxy_url, retry_s=retry_s) as proxy, ServiceClient("user_simulator", users_url) as users:
        one = EpisodePlayer(config, ProxyClient(proxy, call_timeout_s=config.services.agent_runner.call_timeout_s), users)
        yield one
        await one.close()


def scripted(tasks: dict[str, TaskSpec], *, solo: bool) -> Callable[[str, Any], Any]:
    """A policy that plays the complete demonstration of each session's task."""
    playing: dict[str, Demonstrator] = {}

    def policy(sid: str, _body: Any) -> Any:
        demonstrator = playing.setdefault(sid, Demonstrator(tasks[sid], "complete", 0, solo=solo))
        return demonstrator.next_message(None)

    return policy


def saying(*messages: Any) -> Callable[[str, Any], Any]:
    """A policy that says these messages one after the other, then the last one again and again."""
    left = list(messages)
    return lambda _sid, _body: left.pop(0) if len(left) > 1 else left[0]


def owner(trajectory: Trajectory) -> Owner | None:
    """Whose fault a failure is; checks that it has no reward."""
    assert trajectory.status is Status.FAILED
    assert trajectory.reward is None
    assert trajectory.turn_rewards == []
    return trajectory.failure.who if trajectory.failure else None


class OddBackend:
    """A real back end whose sessions misbehave: tools raise or hang, or the session cannot be made at all."""

    def __init__(self, inner: DomainBackend, *, odd: str = "", inline: bool = True, delay_s: float = 0.0) -> None:
        self._inner = inner
        self._odd = odd
        self._delay_s = delay_s
        self.inline = inline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def new_session(self, task: TaskSpec, *, solo: bool) -> Any:
        if self._odd == "new_session":
            raise ValueError("initialization_data: no such table")
        return OddSession(self._inner.new_session(task, solo=solo), self._odd, self._delay_s)


class OddSession:
    """A session of `OddBackend`."""

    def __init__(self, inner: Any, odd: str, delay_s: float) -> None:
        self._inner = inner
        self._odd = odd
        self._delay_s = delay_s

    def __getattr__(self, name: str) -> Any:
        if name == self._odd:
            raise RuntimeError(f"{name} is broken")
        return getattr(self._inner, name)

    def call(self, name: str, arguments: Json, requestor: Any = "assistant") -> ToolResult:
        if self._odd == "call":
            raise RuntimeError("the database is gone")
        time.sleep(self._delay_s)
        return self._inner.call(name, arguments, requestor)
