"""The part of the proxy that deals with policy servers, without its API and store: fake servers over real HTTP, and calls on them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fake_sglang import Exchange, FakeSglang, logprob_of
from proxy_servers import ServerThread

from services.common.background import Background
from services.common.wire.store import PolicyVersion
from services.policy_proxy.calls.generation import Generated, Generator
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.servers.fleet import Fleet
from services.policy_proxy.servers.outputs import Piece
from services.policy_proxy.servers.pool import PoolSettings, ServerPool
from services.policy_proxy.servers.versions import version_of
from services.policy_proxy.servers.watch import Watcher
from services.policy_proxy.weights.gate import Gate
from services.policy_proxy.weights.group import WeightGroup
from services.policy_proxy.weights.steps import PauseMode, Plan
from services.policy_proxy.weights.updates import WeightUpdates

EOS = 2
INITIAL = PolicyVersion(version=0, path="/weights/v0")
WAIT_S = 60.0


def prompt_of(n: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    return np.asarray([100 + n, 101, 102], "<i4")


def greedy(max_new_tokens: int = 64, **more: Any) -> Sampling:
    return Sampling(1.0, 1.0, max_new_tokens, EOS, **more)


@dataclass
class Rig:
    """Fakes, and what the proxy makes of them."""

    engines: list[FakeSglang]
    threads: list[ServerThread]
    pool: ServerPool
    gate: Gate
    group: WeightGroup
    updates: WeightUpdates
    watcher: Watcher
    fleet: Fleet
    generator: Generator
    skip_s: float = 0.0
    """The watcher's clock is ahead by this."""
    heard: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def exchanges(self) -> list[Exchange]:
        return [item for engine in self.engines for item in engine.exchanges]

    def listen(self, piece: Piece) -> None:
        assert len(piece.ids) == len(piece.logprobs) > 0
        self.heard += piece.ids
        self.logprobs += piece.logprobs

    def start(self, call_id: str = "c1", *, stream: bool = True, n: int = 0, **kwargs: Any) -> "asyncio.Task[Generated]":
        listener = self.listen if stream else None
        sampling = kwargs.pop("sampling", greedy())
        preferred = kwargs.pop("preferred", "")
        return asyncio.create_task(self.generator.generate(call_id, prompt_of(n), sampling, preferred, listener=listener, **kwargs))

    async def update(self, version: int, mode: PauseMode = "abort", deadline_s: float = 10.0, **kwargs: Any) -> list[bool]:
        plan = Plan(PolicyVersion(version=version, path=f"/weights/v{version}"), deadline_s, mode, **kwargs)
        return [result.ok for result in await self.updates.update(plan)]

    async def all_up(self) -> None:
        await until(lambda: len(self.pool.up()) == len(self.pool.servers), "all servers up")

    def assert_true(self, done: Generated, call_id: str = "c1", streamed: bool = True) -> None:
        """What was captured, and heard, is what servers made, token by token: id, logprob, and the version it was made with."""
        made = sorted(
            (item for item in self.exchanges if item.rid.startswith(f"{call_id}.")), key=lambda item: int(item.rid.split(".")[-1])
        )
        prompt, made_ids, versions = made[0].input_ids, [], []
        for index, exchange in enumerate(made):
            following = made[index + 1].input_ids if index + 1 < len(made) else prompt + done.ids
            used = following[len(exchange.input_ids) :]
            assert used == exchange.output_ids[: len(used)]
            made_ids += used
            versions += [version_of(label) for label in exchange.versions[: len(used)]]
        assert done.ids == made_ids
        assert done.logprobs == [logprob_of(token) for token in made_ids]
        assert [version for version, count in done.versions for _ in range(count)] == versions
        if streamed:
            assert self.heard == done.ids
            assert self.logprobs == done.logprobs


async def until(check: Callable[[], Any], what: str = "the condition", timeout_s: float = WAIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {timeout_s:g} s"
        await asyncio.sleep(0.005)


def make_rig(engines: list[FakeSglang], threads: list[ServerThread], mode: PauseMode, deadline_s: float, settings: dict[str, Any]) -> Rig:
    timeout_s = settings.pop("timeout_s", WAIT_S)
    pool = ServerPool([thread.url for thread in threads], PoolSettings(**settings))
    gate, group = Gate(), WeightGroup(pool)
    watcher = Watcher(pool, deadline_s, lambda: time.monotonic() + rig.skip_s)
    updates = WeightUpdates(pool, gate, group, mode)
    rig = Rig(engines, threads, pool, gate, group, updates, watcher, Fleet(pool, watcher), Generator(pool, gate, timeout_s))
    return rig


@asynccontextmanager
async def server_rig(
    servers: int = 1, says: int = 12, mode: PauseMode = "abort", pause_deadline_s: float = 10.0, **settings: Any
) -> AsyncIterator[Rig]:
    """Fake servers that all say the same ``says`` tokens, watched, at version 0."""
    output = [*range(20, 20 + says - 1), EOS]
    with ExitStack() as stack:
        engines = [FakeSglang(script=lambda _: list(output), model_path=INITIAL.path) for _ in range(servers)]
        threads = [stack.enter_context(ServerThread(engine.app)) for engine in engines]
        for engine, thread in zip(engines, threads, strict=True):
            engine.drop, engine.plans = thread._reset, engines[0].plans
        rig = make_rig(engines, threads, mode, pause_deadline_s, settings)
        rig.pool.commit(INITIAL)
        try:
            async with Background() as background:
                rig.fleet.start(background)
                await rig.all_up()
                yield rig
        finally:
            await rig.pool.close()
            for engine in engines:
                engine.stall_after, engine.stall_generate, engine.stall_update, engine.stall_control, engine.paused = (
                    -1,
                    False,
                    False,
                    "",
                    False,
                )
            for thread in threads:
                thread.ask_to_stop()
