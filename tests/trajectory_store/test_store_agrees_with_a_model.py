"""Random sequences of operations, with clock jumps and repeated requests, against a simple model in memory.

The store's parts run on a real Redis without HTTP in between (other tests have it), so that thousands of steps take seconds.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from store_helpers import EXPERIMENT, TRIAL, RedisServer, episode_ids, make_config, make_group, make_trajectory

from services.common.errors import Conflict
from services.common.ids import new_id
from services.common.wire.rollouts import Kind
from services.common.wire.store import AckBatchBody, Batch, CancelReply, EnqueueReply, LeaseBatchBody
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
RESULTS = ("scored", "policy", "infra", "env")


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
    scored: bool = False
    version: int | None = None

    def move(self, to: EpisodeState) -> None:
        assert to in EPISODE_EDGES[self.state]
        self.state = to

    def consume(self, what: str) -> None:
        assert not self.consumed
        self.consumed = what


@dataclass
class Group:
    kind: str
    members: list[str]
    state: GroupState = GroupState.OPEN
    ready_number: int = 0
    overdue: bool = False
    deliver: list[str] = field(default_factory=list)

    def move(self, to: GroupState) -> None:
        assert to in GROUP_EDGES[self.state]
        self.state = to


@dataclass
class Model:
    """What the store should hold. Waiting for a retry counts as queued: the retry delay of this test is 0."""

    episodes: dict[str, Episode] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    held: dict[tuple[str, str], Batch] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    readied: int = 0

    def queued(self) -> list[Episode]:
        waiting = [e for e in self.episodes.values() if e.state in (EpisodeState.QUEUED, EpisodeState.DELAYED)]
        return sorted(waiting, key=lambda e: (KINDS.index(e.request.kind), e.order))

    def leased(self) -> list[str]:
        return [name for name, e in self.episodes.items() if e.state is EpisodeState.LEASED]

    def ready(self, kind: str) -> list[str]:
        found = [(g.ready_number, name) for name, g in self.groups.items() if g.kind == kind and g.state is GroupState.READY]
        return [name for _, name in sorted(found)]

    def group_of(self, episode: Episode) -> Group:
        return self.groups[episode.request.group_id]

    def fail(self, episode: Episode) -> str:
        episode.failures += 1
        if episode.failures >= MAX_ATTEMPTS or self.group_of(episode).state is not GroupState.OPEN:
            self.finish(episode)
            return "stored"
        episode.move(EpisodeState.DELAYED)
        return "retry"

    def finish(self, episode: Episode, *, scored: bool = False, cancelled: bool = False) -> None:
        episode.move(EpisodeState.FINAL)
        group = self.group_of(episode)
        if cancelled or group.state is not GroupState.OPEN:
            episode.consume("dropped")
        else:
            episode.scored = scored
        self.check_ready(group)

    def check_ready(self, group: Group) -> None:
        members = [self.episodes[name] for name in group.members]
        whole = all(e.state is EpisodeState.FINAL for e in members)
        quorum = group.overdue and sum(e.scored for e in members) >= -(-len(members) // 2)
        if group.state is not GroupState.OPEN or not (whole or quorum):
            return
        for episode in members:
            if episode.state in (EpisodeState.QUEUED, EpisodeState.DELAYED):
                episode.move(EpisodeState.FINAL)
                episode.consume("dropped")
        group.deliver = [e.request.episode_id for e in members if e.state is EpisodeState.FINAL and not e.consumed]
        if not group.deliver:
            group.move(GroupState.DONE)
            return
        self.readied += 1
        group.ready_number = self.readied
        group.move(GroupState.READY)

    def take(self, kind: str, wanted: int, partial: bool, oldest: int | None) -> list[str]:
        """The groups that a lease gets; what is too old is dropped even where the lease gets nothing."""
        chosen: list[str] = []
        for name in self.ready(kind):
            if len(chosen) == wanted:
                break
            if oldest is None or self.freshen(self.groups[name], oldest):
                chosen.append(name)
        return chosen if partial or len(chosen) == wanted else []

    def freshen(self, group: Group, oldest: int) -> bool:
        for name in list(group.deliver):
            version = self.episodes[name].version
            if version is not None and version < oldest:
                self.episodes[name].consume("dropped")
                group.deliver.remove(name)
        if not group.deliver:
            group.move(GroupState.DONE)
        return bool(group.deliver)

    def counts(self, kind: str) -> dict[str, int]:
        mine = [e for e in self.episodes.values() if e.request.kind == kind]
        taken = sum(len(g.deliver) for g in self.groups.values() if g.kind == kind and g.state is GroupState.LEASED)
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

    @rule(size=st.integers(1, 3), kind=st.sampled_from(KINDS), repeat=st.booleans())
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
        expected = [e for e in self.model.queued() if e.request.kind not in self.model.paused][:limit]
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
    @rule(data=st.data(), result=st.sampled_from(RESULTS), version=st.none() | st.integers(0, 3), repeat=st.booleans())
    def report(self, data: st.DataObject, result: str, version: int | None, repeat: bool) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        who = "" if result == "scored" else result
        trajectory = make_trajectory(episode.request, who=who, attempt=episode.attempt)
        trajectory = trajectory.model_copy(update={"policy_versions": [] if version is None else [version]})
        if result in ("scored", "policy"):
            self.model.finish(episode, scored=result == "scored")
            expected = "stored"
        else:
            expected = self.model.fail(episode)
        if expected == "stored":
            episode.version = version
        assert self.run(self.store.trajectories.put(trajectory, episode.lease)) == expected
        if repeat:
            assert self.run(self.store.trajectories.put(trajectory, episode.lease)) == ("duplicate" if expected == "stored" else "retry")

    @rule()
    def play_everything(self) -> None:
        """Without it, groups would rarely become ready."""
        self.lease("w1", 100)
        for name in self.model.leased():
            episode = self.model.episodes[name]
            self.model.finish(episode, scored=True)
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
            self.model.finish(episode, scored=True)

    @precondition(lambda self: self.model.leased())
    @rule(data=st.data(), count=st.booleans())
    def release(self, data: st.DataObject, count: bool) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        for _ in range(2):
            self.run(self.store.rollouts.release(episode.lease, "gave up", count))
        if count or self.model.group_of(episode).state is not GroupState.OPEN:
            self.model.fail(episode)
        else:
            episode.move(EpisodeState.QUEUED)

    @precondition(lambda self: self.model.episodes)
    @rule(data=st.data(), repeat=st.booleans())
    def cancel(self, data: st.DataObject, repeat: bool) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(sorted(self.model.episodes)))]
        final = int(episode.state is EpisodeState.FINAL)
        assert self.run(self.store.rollouts.cancel([episode.request.episode_id], [], "why")) == CancelReply(
            cancelled=1 - final, final=final
        )
        if not final:
            self.model.finish(episode, cancelled=True)
        if repeat:
            assert self.run(self.store.rollouts.cancel([episode.request.episode_id], [], "why")) == CancelReply(cancelled=0, final=1)

    @rule(kind=st.sampled_from(KINDS))
    def pause_or_resume(self, kind: str) -> None:
        self.model.paused ^= {kind}
        reason = "why" if kind in self.model.paused else None
        _, paused = self.run(self.store.rollouts.set_paused([Kind(kind)], reason))
        assert set(paused) == self.model.paused

    @precondition(lambda self: self.overdue())
    @rule(data=st.data())
    def jump_past_a_deadline(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.overdue()))
        assert self.raw.zadd(KEYS.deadlines("train"), {name: 1}) == 0, "the deadline runs from the first lease"
        self.run(self.store.rollouts.sweep())
        self.settle_retries()
        self.model.groups[name].overdue = True
        self.model.check_ready(self.model.groups[name])

    def overdue(self) -> list[str]:
        """Groups whose deadline can pass next."""
        waiting = [(n, g) for n, g in self.model.groups.items() if g.kind == "train" and g.state is GroupState.OPEN and not g.overdue]
        return [name for name, group in waiting if any(self.model.episodes[member].attempt for member in group.members)]

    def settle_retries(self) -> None:
        for waiting in self.model.episodes.values():
            if waiting.state is EpisodeState.DELAYED:
                waiting.move(EpisodeState.QUEUED)

    @precondition(lambda self: self.model.leased())
    @rule(data=st.data())
    def jump_past_a_lease(self, data: st.DataObject) -> None:
        episode = self.model.episodes[data.draw(st.sampled_from(self.model.leased()))]
        self.raw.zadd(KEYS.leases(episode.request.kind), {episode.lease: 1})
        self.run(self.store.rollouts.sweep())
        self.settle_retries()
        self.model.fail(episode)

    @precondition(lambda self: self.old_leases)
    @rule()
    def heartbeat(self) -> None:
        held = {e.lease for e in self.model.episodes.values() if e.state is EpisodeState.LEASED and e.worker == "w1"}
        assert set(self.run(self.store.rollouts.heartbeat("w1", LONG_S, list(self.old_leases)))) == set(self.old_leases) - held

    @rule(
        consumer=st.sampled_from(["c1", "c2"]),
        kind=st.sampled_from(KINDS),
        wanted=st.integers(1, 2),
        partial=st.booleans(),
        oldest=st.none() | st.integers(1, 3),
    )
    def lease_batch(self, consumer: str, kind: str, wanted: int, partial: bool, oldest: int | None) -> None:
        batch = self.take(consumer, kind, wanted, partial, oldest)
        if held := self.model.held.get((consumer, kind)):
            assert batch is not None
            assert (batch.batch_id, batch.groups, batch.redelivered) == (held.batch_id, held.groups, True)
            return
        expected = self.model.take(kind, wanted, partial, oldest)
        assert ([group.group_id for group in batch.groups] if batch else []) == expected
        for name in expected:
            self.model.groups[name].move(GroupState.LEASED)
        if batch:
            assert episode_ids(batch) == [name for group in expected for name in self.model.groups[group].deliver]
            self.model.held[consumer, kind] = batch

    def take(self, consumer: str, kind: str, wanted: int, partial: bool, oldest: int | None = None) -> Batch | None:
        staleness = None if oldest is None else 5 - oldest
        body = LeaseBatchBody(
            consumer_id=consumer, kind=Kind(kind), n_groups=wanted, ttl_s=LONG_S, max_staleness=staleness, policy_version=5
        )
        return self.run(self.leased(body, partial))

    async def leased(self, body: LeaseBatchBody, partial: bool) -> Batch | None:
        found = await self.store.batches.lease(body, partial=partial)
        if found is None:
            return None
        return msgspec.structs.replace(found.batch, groups=[group async for group in self.store.batches.groups(found)])

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), repeat=st.booleans())
    def ack(self, data: st.DataObject, repeat: bool) -> None:
        batch = self.model.held.pop(data.draw(st.sampled_from(sorted(self.model.held))))
        names = episode_ids(batch)
        dropped = dict.fromkeys(data.draw(st.lists(st.sampled_from(names), unique=True)), "stale")
        for _ in range(2 if repeat else 1):
            self.run(self.store.batches.ack(batch.batch_id, self.verdict(names, dropped)))
        for name in names:
            self.model.episodes[name].consume("dropped" if name in dropped else "trained")
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
        assert audit(self.run(self.store.audits.snapshot())).problems == []


def test_the_store_agrees_with_the_model(redis_server: RedisServer) -> None:
    rules = {"max_attempts": MAX_ATTEMPTS, "retry_delay_s": 0, "group_quorum": 0.5, "group_deadline_s": LONG_S}
    store = build_store(make_config(redis_server.url, **rules))
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
        runner.run(store.database.server.close())


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
