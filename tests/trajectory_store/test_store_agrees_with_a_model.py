"""Random sequences of operations, with clock jumps and repeated requests, against a simple model in memory.

The store's parts run on a real Redis without HTTP in between (other tests have it), so that thousands of steps take seconds.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_helpers import EXPERIMENT, TRIAL, RedisServer, episode_ids, make_config, make_group, make_trajectory

from services.common.errors import Conflict
from services.common.ids import new_id
from services.common.wire.rollouts import Kind
from services.common.wire.store import AckBatchBody, Batch, EnqueueReply, LeaseBatchBody
from services.trajectory_store.accounts import audit
from services.trajectory_store.keys import Keys
from services.trajectory_store.redis_store.database import script_text
from services.trajectory_store.states import EPISODE_EDGES, GROUP_EDGES, EpisodeState, GroupState
from services.trajectory_store.store import Store, build_store

T = TypeVar("T")

MAX_ATTEMPTS = 2
KEYS = Keys.of_trial(EXPERIMENT, TRIAL)
KINDS = ("eval", "train")
LONG_S = 3600.0


@dataclass
class Episode:
    request: Any
    order: int
    state: EpisodeState = EpisodeState.QUEUED
    attempt: int = 0
    failures: int = 0
    lease: str = ""
    worker: str = ""
    consumed: str = ""

    def move(self, to: EpisodeState) -> None:
        assert to in EPISODE_EDGES[self.state]
        self.state = to


@dataclass
class Group:
    kind: str
    members: list[str]
    state: GroupState = GroupState.OPEN
    ready_number: int = 0

    def move(self, to: GroupState) -> None:
        assert to in GROUP_EDGES[self.state]
        self.state = to


@dataclass
class Model:
    """What the store should hold. Waiting for a retry counts as queued: the retry delay of this test is 0."""

    episodes: dict[str, Episode] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    held: dict[tuple[str, str], Batch] = field(default_factory=dict)
    readied: int = 0

    def queued(self) -> list[Episode]:
        waiting = [e for e in self.episodes.values() if e.state in (EpisodeState.QUEUED, EpisodeState.DELAYED)]
        return sorted(waiting, key=lambda e: (KINDS.index(e.request.kind), e.order))

    def leased(self) -> list[str]:
        return [name for name, e in self.episodes.items() if e.state is EpisodeState.LEASED]

    def ready(self, kind: str) -> list[str]:
        found = [(g.ready_number, name) for name, g in self.groups.items() if g.kind == kind and g.state is GroupState.READY]
        return [name for _, name in sorted(found)]

    def fail(self, episode: Episode) -> str:
        episode.failures += 1
        if episode.failures >= MAX_ATTEMPTS:
            self.finish(episode)
            return "stored"
        episode.move(EpisodeState.DELAYED)
        return "retry"

    def finish(self, episode: Episode) -> None:
        episode.move(EpisodeState.FINAL)
        group = self.groups[episode.request.group_id]
        if all(self.episodes[name].state is EpisodeState.FINAL for name in group.members):
            self.readied += 1
            group.ready_number = self.readied
            group.move(GroupState.READY)

    def counts(self, kind: str) -> dict[str, int]:
        mine = [e for e in self.episodes.values() if e.request.kind == kind]
        taken = sum(len(g.members) for g in self.groups.values() if g.kind == kind and g.state is GroupState.LEASED)
        final = sum(e.state is EpisodeState.FINAL for e in mine)
        trained, dropped = (sum(e.consumed == what for e in mine) for what in ("trained", "dropped"))
        return {
            "queued": sum(e.request.kind == kind for e in self.queued()),
            "running": sum(e.state is EpisodeState.LEASED for e in mine),
            "trajectories_in": final,
            "trained": trained,
            "dropped": dropped,
            "leased": taken,
            "waiting": final - trained - dropped - taken,
            "ready_groups": len(self.ready(kind)),
            "lost": 0,
            "duplicated": 0,
        }


class StoreMachine(RuleBasedStateMachine):
    """Every answer of the store is compared with the model's, every count after every step, the audit at the end."""

    def __init__(self, runner: asyncio.Runner, store: Store, raw: "redis.Redis[bytes]") -> None:
        super().__init__()
        self.runner, self.store, self.raw, self.model = runner, store, raw, Model()
        self.old_leases: dict[str, str] = {}
        raw.flushall()

    def run(self, action: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(action)

    @rule(size=st.integers(1, 2), kind=st.sampled_from(KINDS), repeat=st.booleans())
    def enqueue(self, size: int, kind: str, repeat: bool) -> None:
        name = f"g{len(self.model.groups)}"
        requests = make_group(name, size, kind)
        assert self.run(self.store.rollouts.enqueue(requests)) == EnqueueReply(enqueued=size, known=0)
        if repeat:
            assert self.run(self.store.rollouts.enqueue(requests)) == EnqueueReply(enqueued=0, known=size)
        self.model.groups[name] = Group(kind, [request.episode_id for request in requests])
        for request in requests:
            self.model.episodes[request.episode_id] = Episode(request, order=len(self.model.episodes))

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(1, 4))
    def lease(self, worker: str, limit: int) -> None:
        expected = self.model.queued()[:limit]
        token = new_id("lease")
        leases = self.run(self.store.rollouts.lease(token, worker, limit, LONG_S))
        if leases:
            assert self.run(self.store.rollouts.lease(token, worker, limit, LONG_S)) == leases, "a repeated command leases nothing more"
        assert [lease.request.episode_id for lease in leases] == [e.request.episode_id for e in expected]
        for episode, lease in zip(expected, leases, strict=True):
            if episode.state is EpisodeState.DELAYED:
                episode.move(EpisodeState.QUEUED)
            episode.move(EpisodeState.LEASED)
            episode.attempt += 1
            episode.lease, episode.worker = lease.lease_id, worker
            assert lease.request.attempt == episode.attempt
            self.old_leases[lease.lease_id] = episode.request.episode_id

    @precondition(lambda self: self.model.leased())
    @rule(data=st.data(), result=st.sampled_from(["scored", "policy", "infra", "env"]), repeat=st.booleans())
    def report(self, data: st.DataObject, result: str, repeat: bool) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        who = "" if result == "scored" else result
        trajectory = make_trajectory(episode.request, who=who, attempt=episode.attempt)
        if result in ("scored", "policy"):
            self.model.finish(episode)
            expected = "stored"
        else:
            expected = self.model.fail(episode)
        assert self.run(self.store.trajectories.put(trajectory, episode.lease)) == expected
        if repeat:
            assert self.run(self.store.trajectories.put(trajectory, episode.lease)) == ("duplicate" if expected == "stored" else "retry")

    @rule()
    def play_everything(self) -> None:
        """Without it, groups would rarely become ready."""
        self.lease("w1", 100)
        for name in self.model.leased():
            episode = self.model.episodes[name]
            self.model.finish(episode)
            done = make_trajectory(episode.request, attempt=episode.attempt)
            assert self.run(self.store.trajectories.put(done, episode.lease)) == "stored"

    @precondition(lambda self: any(e.attempt > 1 for e in self.model.episodes.values()))
    @rule(data=st.data(), failed=st.booleans())
    def report_late(self, data: st.DataObject, failed: bool) -> None:
        names = [name for name, e in self.model.episodes.items() if e.attempt > 1]
        episode = self.model.episodes[data.draw(st.sampled_from(names))]
        was_final = episode.state is EpisodeState.FINAL
        late = make_trajectory(episode.request, who="infra" if failed else "", attempt=1)
        outcome = self.run(self.store.trajectories.put(late, "lease-of-before"))
        if was_final:
            assert outcome in ("duplicate", "superseded")
        elif failed:
            assert outcome == "retry"
        else:
            assert outcome == "stored"
            self.model.finish(episode)

    @precondition(lambda self: self.model.leased())
    @rule(data=st.data(), count=st.booleans())
    def release(self, data: st.DataObject, count: bool) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        for _ in range(2):
            self.run(self.store.rollouts.release(episode.lease, "gave up", count))
        if count:
            self.model.fail(episode)
        else:
            episode.move(EpisodeState.QUEUED)

    @precondition(lambda self: self.model.leased())
    @rule(data=st.data())
    def jump_past_a_lease(self, data: st.DataObject) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        self.raw.zadd(KEYS.leases(episode.request.kind), {episode.lease: 1})
        self.run(self.store.rollouts.sweep())
        for waiting in self.model.episodes.values():
            if waiting.state is EpisodeState.DELAYED:
                waiting.move(EpisodeState.QUEUED)
        self.model.fail(episode)

    @precondition(lambda self: self.old_leases)
    @rule()
    def heartbeat(self) -> None:
        held = {e.lease for e in self.model.episodes.values() if e.state is EpisodeState.LEASED and e.worker == "w1"}
        assert set(self.run(self.store.rollouts.heartbeat("w1", LONG_S, list(self.old_leases)))) == set(self.old_leases) - held

    @rule(consumer=st.sampled_from(["c1", "c2"]), kind=st.sampled_from(KINDS), wanted=st.integers(1, 2), partial=st.booleans())
    def lease_batch(self, consumer: str, kind: str, wanted: int, partial: bool) -> None:
        batch = self.take(consumer, kind, wanted, partial)
        if held := self.model.held.get((consumer, kind)):
            assert batch is not None
            assert (batch.batch_id, batch.groups, batch.redelivered) == (held.batch_id, held.groups, True)
            return
        ready = self.model.ready(kind)[:wanted]
        expected = ready if partial or len(ready) == wanted else []
        assert ([group.group_id for group in batch.groups] if batch else []) == expected
        for name in expected:
            self.model.groups[name].move(GroupState.LEASED)
        if batch:
            self.model.held[consumer, kind] = batch

    def take(self, consumer: str, kind: str, wanted: int, partial: bool) -> Batch | None:
        body = LeaseBatchBody(consumer_id=consumer, kind=Kind(kind), n_groups=wanted, ttl_s=LONG_S)
        return self.run(self.store.batches.lease(body, partial=partial))

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), repeat=st.booleans())
    def ack(self, data: st.DataObject, repeat: bool) -> None:
        batch = self.model.held.pop(data.draw(st.sampled_from(sorted(self.model.held))))
        names = episode_ids(batch)
        dropped = dict.fromkeys(data.draw(st.lists(st.sampled_from(names), unique=True)), "stale")
        for _ in range(2 if repeat else 1):
            self.run(self.store.batches.ack(batch.batch_id, self.verdict(names, dropped)))
        for name in names:
            assert not self.model.episodes[name].consumed
            self.model.episodes[name].consumed = "dropped" if name in dropped else "trained"
        for group in batch.groups:
            self.model.groups[group.group_id].move(GroupState.DONE)

    def verdict(self, names: list[str], dropped: dict[str, str]) -> AckBatchBody:
        return AckBatchBody(trained=[name for name in names if name not in dropped], dropped=dropped, step=1, policy_version=1)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), expire=st.booleans())
    def lose_a_batch(self, data: st.DataObject, expire: bool) -> None:
        consumer, kind = data.draw(st.sampled_from(sorted(self.model.held)))
        batch = self.model.held.pop((consumer, kind))
        for group in batch.groups:
            self.model.groups[group.group_id].move(GroupState.READY)
        if expire:
            self.raw.zadd(KEYS.batch_leases(kind), {batch.batch_id: 1})
            assert self.take("nobody", kind, 1000, False) is None
        else:
            self.run(self.store.batches.nack(batch.batch_id))
        with pytest.raises(Conflict):
            self.run(self.store.batches.ack(batch.batch_id, self.verdict(episode_ids(batch), {})))

    @invariant()
    def counts_agree(self) -> None:
        kinds = self.run(self.store.ledger.stats()).kinds
        for kind in KINDS:
            expected = self.model.counts(kind)
            assert kinds[Kind(kind)].model_dump(include=set(expected)) == expected

    def teardown(self) -> None:
        assert audit(self.run(self.store.ledger.snapshot())).problems == []


def test_the_store_agrees_with_the_model(redis_server: RedisServer) -> None:
    store = build_store(make_config(redis_server.url, max_attempts=MAX_ATTEMPTS, retry_delay_s=0))
    with asyncio.Runner() as runner, redis.Redis.from_url(redis_server.url) as raw:
        run_state_machine_as_test(
            lambda: StoreMachine(runner, store, raw),
            settings=settings(
                max_examples=20,
                stateful_step_count=50,
                deadline=None,
                phases=(Phase.reuse, Phase.generate),  # shrinking would outlast the time limit of a test
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
        runner.run(store.database.close())


def test_an_edge_that_is_not_in_the_table_is_refused_by_redis(redis_server: RedisServer) -> None:
    body = "\nmove('episode', K.episode(ARGV[1]), ARGV[2])"
    library = script_text("sweep").rsplit("-- ARGV", 1)[0]
    with redis.Redis.from_url(redis_server.url) as raw:
        for source, allowed in EPISODE_EDGES.items():
            for target in EpisodeState:
                if target is EpisodeState.NEW:
                    continue
                raw.hset(KEYS.episode("e"), "state", source)
                if target in allowed:
                    raw.eval(library + body, 1, KEYS.prefix, "e", target)
                else:
                    with pytest.raises(redis.ResponseError, match="illegal transition"):
                        raw.eval(library + body, 1, KEYS.prefix, "e", target)
