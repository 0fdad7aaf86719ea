"""kill -9 of everything at random in a real run: ``python tests/system/chaos_of_a_run.py --minutes 10 --fsync always``.

The launcher's whole stack on the smoke config, straight to PPO, over a Redis of this script. Every few seconds one of store, Redis, agent
runner and trainer is killed; with ``everysec`` Redis also loses its power, and with it what its log had not synced. Two witnesses stand
beside: one reads the store's completion order, so what it saw is acknowledged; the other reads every state that the trainer commits, so
it knows which episodes each step was computed from. After the time the run is left in peace for a few more steps, then interrupted.

Then: the audit balances, nothing is lost or duplicated by the accounts, no episode is in two steps, and nothing a witness saw is gone
(``everysec``: except from the second before a power cut, and the store has reported that).
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import redis

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "trajectory_store"):
    sys.path.insert(0, str(folder))

from mortal_redis import MortalRedis  # noqa: E402
from store_helpers import StoreClient, StoreThread  # noqa: E402
from system_trial import CONFIG, SERVICES, Trial, free_ports, wait_for  # noqa: E402

from services.common.config import load_config  # noqa: E402
from services.trainer.state import State  # noqa: E402
from services.trajectory_store.keys import Keys  # noqa: E402

VICTIMS = {"trajectory_store": 3, "redis": 3, "agent_runner": 3, "trainer": 1}
"""With their weights: a trainer takes long to come back, and without steps nothing is at stake."""
PAUSE_S = (1.5, 5.0)
MERCY_S = 14.0
"""Between two deaths of the same service; the launcher gives up one that dies ten times in two minutes."""
MORE_STEPS = 3
ENDLESS = 1_000_000
LOOK_S = 0.05
KEYS = Keys.of_trial("smoke", "trial0")


@dataclass
class Witness:
    """What was seen: episodes that were final, and the episodes of each step."""

    redis_url: str
    state_file: Path
    seen: dict[str, float] = field(default_factory=dict[str, float])
    """Episode -> when it was last seen to become final; it is done again where a power cut took it."""
    steps: dict[int, set[str]] = field(default_factory=dict[int, set[str]])
    """Step -> the episodes it was trained on."""
    _known: dict[str, str] = field(default_factory=dict[str, str])
    _cursor: float = 0.0

    def watch(self, stop: threading.Event) -> None:
        client = redis.Redis.from_url(self.redis_url, socket_timeout=2)
        while not stop.wait(LOOK_S):
            self.read_steps()
            try:
                self.read_completed(client)
            except redis.RedisError:
                continue
        client.close()

    def read_completed(self, client: "redis.Redis[bytes]") -> None:
        last = float(client.hget(KEYS.sequence, "completed") or 0)
        self._cursor = min(self._cursor, last)  # after a power cut numbers are given out again
        for name, number in client.zrangebyscore(KEYS.completed, f"({self._cursor}", "+inf", withscores=True):
            self.seen[name.decode()] = time.time()
            self._cursor = number

    def read_steps(self) -> None:
        if not self.state_file.exists():
            return
        state = msgspec.json.decode(self.state_file.read_bytes(), type=State)
        if state.step not in self.steps:
            # What an earlier step had used already is acked again and not trained on.
            used = {name for ack in state.acks for name in ack.trained}
            self.steps[state.step] = {name for name in used if name not in self._known}
        self._known = state.known()

    def trained_twice(self) -> list[str]:
        times = Counter(name for names in self.steps.values() for name in names)
        return [name for name, count in times.items() if count > 1]


def kill_at_random(trial: Trial, mortal: MortalRedis, seconds: float, launcher: Any) -> Counter[str]:
    """Kills until the time is over; only what answers, so that everything comes back now and then."""

    def lives(name: str) -> bool:
        return mortal.answers() if name == "redis" else trial.answers(name)

    kills: Counter[str] = Counter()
    last: dict[str, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(random.uniform(*PAUSE_S))
        assert launcher.poll() is None, trial.output.read_text()[-6000:]
        now = time.monotonic()
        fair = [name for name in VICTIMS if now - last.get(name, -MERCY_S) >= MERCY_S and lives(name)]
        if not fair:
            continue
        victim = random.choices(fair, [VICTIMS[name] for name in fair])[0]
        if victim == "redis":
            kills["power"] += mortal.die_and_return(cut=random.random() < 0.5)
        elif (pid := trial.pid_of(victim)) is not None:
            os.kill(pid, signal.SIGKILL)
        kills[victim] += 1
        last[victim] = time.monotonic()
    return kills


def run(folder: Path, seconds: float, fsync: str, seed: int) -> dict[str, Any]:
    """One run; returns what happened. Raises AssertionError where a promise was broken."""
    random.seed(seed)
    (folder / "redis").mkdir()
    with MortalRedis(folder / "redis", fsync) as mortal:
        trial = make_trial(folder, mortal)
        witness = Witness(mortal.url, trial.directory / "checkpoints" / "state.json")
        stop = threading.Event()
        watcher = threading.Thread(target=witness.watch, args=(stop,))
        watcher.start()
        try:
            launcher = trial.start(f"total_train_steps={ENDLESS}")
            wait_for(lambda: trial.steps() >= 1 or launcher.poll() is not None, "a first PPO step")
            kills = kill_at_random(trial, mortal, seconds, launcher)
            steps = trial.steps()
            wait_for(lambda: trial.steps() >= steps + MORE_STEPS or launcher.poll() is not None, "steps in peace")
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(timeout=120) == 130, trial.output.read_text()[-6000:]
            trial.assert_nothing_left()
        finally:
            stop.set()
            watcher.join()
            for process in trial.launchers:
                process.kill()  # what it started dies with it
                process.wait()
        return verdict(trial, mortal, witness) | {"fsync": fsync, "kills": dict(kills), "steps_under_fire": steps}


def make_trial(folder: Path, mortal: MortalRedis) -> Trial:
    """The smoke config on free ports and on this script's Redis."""
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    overrides = [f"cluster.fileroot={folder / 'runs'}", f"services.trajectory_store.redis_url={mortal.url}"]
    # Patient with attempts: leases are lost all the time here, and an episode that fails for good teaches nothing.
    overrides += ["services.trajectory_store.max_attempts=50", "services.agent_runner.lease_ttl_s=5"]
    overrides += [f"services.{name}.port={ports[name]}" for name in SERVICES]
    overrides += ["sft.enabled=false", "evaluator.before=false", "evaluator.after=false"]
    (folder / "runs").mkdir()
    return Trial(folder / "runs" / "smoke" / "trial0", overrides, ports)


def verdict(trial: Trial, mortal: MortalRedis, witness: Witness) -> dict[str, Any]:
    """Asks a store over the Redis that is left, and compares with what the witness saw."""
    config = load_config(CONFIG, trial.overrides)
    with StoreThread(config) as server, redis.Redis.from_url(mortal.url) as raw:
        store = StoreClient(server.url)
        audit, stats = store.call("GET", "/v1/audit"), store.call("GET", "/v1/stats")
        store.close()
        gone = [name for name in witness.seen if raw.hget(KEYS.episode(name), "state") != b"final"]
        trained = {name for names in witness.steps.values() for name in names}
        acked = trained - witness.steps[max(witness.steps)]  # the ack of the last step may have been cut off by the end
        unmarked = [name for name in acked if raw.hget(KEYS.episode(name), "consumed") != b"trained"]
    counts = stats["total"]
    assert audit["balanced"], audit["problems"]
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert witness.trained_twice() == []
    unexplained = [name for name in gone if not mortal.explains(witness.seen[name])]
    assert unexplained == [], "acknowledged and gone without a power cut"
    if not mortal.power_cuts:
        assert unmarked == [], "trained on, and the store does not know"
    elif gone:
        assert stats["losses"], "writes were lost and nobody said so"
    return {
        "balanced": audit["balanced"],
        "episodes": len(witness.seen),
        "steps": len(witness.steps),
        "trained": len(trained),
        "gone_in_power_cuts": len(gone),
        "trained_and_forgotten_in_power_cuts": len(unmarked),
        "losses_reported": len(stats["losses"]),
        "drops": counts["drops"],
        "retries": counts["retries"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fsync", choices=["always", "everysec"], default="everysec")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    for name in ("REDIS_URL", "FRONTDESK_ADMIN_KEY"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.minutes * 60, options.fsync, options.seed)
    print(json.dumps({"seed": options.seed, **report}, indent=2))


if __name__ == "__main__":
    main()
