"""kill -9 of everything at random, for as long as wanted: ``python tests/trajectory_store/chaos.py --minutes 10 --fsync always``.

Real processes: Redis, the store, runners and a trainer. A monkey kills one of them every second or so; everything that was killed is
started again. Redis with ``everysec`` also loses its power: what was not synced in the last second is cut off its append-only file.

The trainer works as the real one does: it writes what it consumed to its checkpoint (atomically), then acks; after a crash it acks a batch
that comes again without training on it. Runners and the feeder note, synced, what the store acknowledged. At the end the audit balances, no
episode is trained on twice, every episode has an outcome, and nothing acknowledged is missing (``everysec``: except from the second before
a power cut, and that is reported).
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from mortal_redis import MortalRedis
from store_helpers import (
    LineRefusedError,
    StoreClient,
    StoreProcess,
    episode_ids,
    make_call,
    make_config,
    make_group,
    make_trajectory,
    wait_until,
)

from services.common.wire.calls import encode_call
from services.common.wire.store import Batch

GROUP_SIZE = 3
PAUSE_S = (0.5, 2.0)
"""Between two kills."""


class Journal:
    """Lines that survive a kill -9 of their writer."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def note(self, *words: str) -> None:
        self._file.write(json.dumps([time.time(), *words]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def lines(path: Path) -> list[list[Any]]:
    """Whole lines only: the last one may have been cut."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("]")]


def patiently(act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Until the store answers with anything that is not "not now"."""
    while True:
        try:
            return act(*arguments, **named)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (429, 502, 503, 504):
                raise
        except httpx.HTTPError:
            pass
        time.sleep(0.05)


def play(url: str, folder: Path, name: str) -> None:
    """A runner: sessions, call by call; sometimes the environment breaks."""
    store, journal, dice = StoreClient(url), Journal(folder / f"{name}.journal"), random.Random(name + str(time.time()))
    while True:
        leases = patiently(store.lease, name, limit=4, ttl_s=2.0, wait_s=0.5)
        for lease in leases:
            request, lease_id = lease["request"], lease["lease_id"]
            session_id = f"{request['episode_id']}.a{request['attempt']}"
            failed = dice.random() < 0.1
            try:
                patiently(store.open, session_id)
                for ordinal in range(3):
                    record = make_call(session_id, ordinal)
                    patiently(store.begin, session_id, record.call_id)
                    patiently(store.record, record)
                patiently(store.seal, session_id)
            except (httpx.HTTPStatusError, LineRefusedError) as error:
                # A lost lease was played again under another attempt, or Redis lost the session in a power cut.
                status = error.status if isinstance(error, LineRefusedError) else error.response.status_code
                assert status in (404, 409), error
                failed = True
            trajectory = make_trajectory(request, session_id=session_id, who="env" if failed else "")
            outcome = patiently(store.put, trajectory, lease_id)
            if outcome == "stored":
                journal.note("stored", request["episode_id"])


def feed(url: str, folder: Path) -> None:
    """Keeps some groups in the queue and notes which the store took."""
    store, journal = StoreClient(url), Journal(folder / "feeder.journal")
    number = len(lines(folder / "feeder.journal"))
    while True:
        if sum(patiently(store.call, "GET", "/v1/groups?kind=train").values()) > 20:
            time.sleep(0.05)
            continue
        group = f"g{number}"
        patiently(store.enqueue, make_group(group, GROUP_SIZE))
        journal.note("enqueued", group)
        number += 1


def train(url: str, folder: Path) -> None:
    """A trainer with a checkpoint of consumed ids. ``trained.journal`` is what it did to the weights."""
    store, journal, checkpoint = StoreClient(url), Journal(folder / "trained.journal"), folder / "checkpoint.json"
    known: dict[str, str] = json.loads(checkpoint.read_text()) if checkpoint.exists() else {}
    while True:
        batch = patiently(store.lease_batch, 2, wait_s=0.5, ttl_s=5.0, allow_partial=True)
        if not batch.batch_id:
            continue
        fresh = {name: reason for name, reason in verdict(batch).items() if name not in known}
        known |= fresh
        aside = checkpoint.with_suffix(".tmp")
        with aside.open("w") as file:
            # The step and the ids it consumed become durable together, as weights and ids do in a checkpoint.
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(checkpoint)
        for name, reason in fresh.items():
            if not reason:
                journal.note("trained", name)
        dropped = {name: known[name] for name in episode_ids(batch) if known[name]}
        try:
            patiently(store.ack, batch, dropped)
        except httpx.HTTPStatusError as error:
            assert error.response.status_code in (404, 409), error.response.text


def verdict(batch: Batch) -> dict[str, str]:
    """Episode -> reason of its drop, "" where it is trained on. Checks that the tokens of a complete session are all there."""
    reasons: dict[str, str] = {}
    for group in batch.groups:
        for episode in group.episodes:
            name, failure = str(episode.trajectory["episode_id"]), episode.trajectory["failure"]
            if episode.complete:
                session = str(episode.trajectory["session_id"])
                assert episode.calls == [encode_call(make_call(session, ordinal)) for ordinal in range(3)], name
            reasons[name] = f"failed_{failure['who']}" if failure else "" if episode.complete else "incomplete"
    return reasons


@dataclass
class Cast:
    """All processes of a run."""

    folder: Path
    redis: MortalRedis
    store: StoreProcess
    roles: dict[str, Any] = field(default_factory=dict[str, Any])
    kills: Counter[str] = field(default_factory=Counter[str])

    def start_role(self, name: str) -> None:
        # Forked from a server that has imported everything, so that a killed process is back at once.
        self.roles[name] = PROCESSES.Process(target=be, args=(name, self.store.url, self.folder), daemon=True)
        self.roles[name].start()

    def kill(self, name: str) -> None:
        self.kills[name] += 1
        if name == "redis":
            self.kills["power"] += self.redis.die_and_return(cut=random.random() < 0.5)
        elif name == "store":
            self.store.kill()
            self.store.start()
        else:
            self.roles[name].kill()
            self.roles[name].join(10)
            self.start_role(name)

    def died(self) -> list[str]:
        """Roles that ended by themselves: their log says why."""
        return [name for name, process in self.roles.items() if process.exitcode not in (None, -signal.SIGKILL)]


def run(folder: Path, seconds: float, fsync: str, seed: int) -> dict[str, Any]:
    """One run; returns what happened. Raises AssertionError where the store broke a promise."""
    random.seed(seed)
    (folder / "redis").mkdir()
    with MortalRedis(folder / "redis", fsync) as redis:
        return _run_on(redis, folder, seconds)


def _run_on(redis: MortalRedis, folder: Path, seconds: float) -> dict[str, Any]:
    # Patient with attempts: in this run leases are lost all the time, and an episode that fails for good teaches nothing here.
    store = StoreProcess(folder, make_config(redis.url, max_attempts=50))
    store.start()
    cast_ = Cast(folder, redis, store)
    try:
        names = ["feed0", "train0", "play0", "play1", "play2"]
        for name in names:
            cast_.start_role(name)
        wait_until(lambda: lines(folder / "trained.journal"), 60, "the first episode to be trained on")
        end = time.time() + seconds
        while time.time() < end:
            time.sleep(random.uniform(*PAUSE_S))
            cast_.kill(random.choice(["redis", "store", *names]))
            assert not cast_.died(), {name: (folder / f"{name}.log").read_text()[-2000:] for name in cast_.died()}
        return settle(cast_)
    finally:
        for process in cast_.roles.values():
            process.kill()
            process.join(10)
        store.kill()


def settle(cast_: Cast) -> dict[str, Any]:
    """Lets the run come to rest and checks every promise."""
    feeder = cast_.roles.pop("feed0")
    feeder.kill()
    feeder.join(10)
    store = StoreClient(cast_.store.url)

    def at_rest() -> bool:
        counts = store.stats()
        return counts["queued"] + counts["running"] + counts["waiting"] + counts["leased"] == 0

    wait_until(at_rest, 120, "the end of all work")
    audit, stats = store.call("GET", "/v1/audit"), store.call("GET", "/v1/stats")
    counts = stats["kinds"]["train"]
    enqueued = [name for _, _, name in lines(cast_.folder / "feeder.journal")]
    trained = [name for _, _, name in lines(cast_.folder / "trained.journal")]
    stored = [(at, name) for journal in cast_.folder.glob("play*.journal") for at, _, name in lines(journal)]
    lost = [name for at, name in stored if store.status("GET", f"/v1/trajectories/{name}")[0] == 404]
    unexplained = [name for at, name in stored if name in set(lost) and not cast_.redis.explains(at)]
    groups = {name for name in enqueued if store.status("GET", f"/v1/trajectories/{name}.0")[0] != 404}
    store.close()
    assert audit["balanced"], audit["problems"]
    assert counts["lost"] == counts["duplicated"] == 0
    assert [name for name, times in Counter(trained).items() if times > 1] == [], "trained twice"
    assert unexplained == [], "acknowledged and gone without a power cut"
    if not cast_.redis.power_cuts:
        assert set(enqueued) <= groups, "an enqueued group has no outcome"
        assert lost == []
        assert counts["trained"] >= len(trained) - GROUP_SIZE
    return {
        "fsync": cast_.redis.fsync,
        "kills": dict(cast_.kills),
        "episodes": counts["trajectories_in"],
        "trained": len(trained),
        "drops": counts["drops"],
        "retries": counts["retries"],
        "lost_in_power_cuts": len(lost),
        "losses_reported": len(stats["losses"]),
        "balanced": audit["balanced"],
    }


def be(name: str, url: str, folder: Path) -> None:
    """One process, by its name."""
    with (folder / f"{name}.log").open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if name.startswith("play"):
        play(url, folder, name)
    elif name.startswith("feed"):
        feed(url, folder)
    else:
        train(url, folder)


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["chaos"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fsync", choices=["always", "everysec"], default="everysec")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.minutes * 60, options.fsync, options.seed)
    print(json.dumps({"seed": options.seed, **report}, indent=2))


if __name__ == "__main__":
    main()
