"""The contenders of the proxy benchmark: how each is started, and what a session of calls is in its own routes.

Every contender is one worker in front of the same model server, on the same CPUs. Peers run with what they need to capture tokens and with
the quietest log they offer; what they captured stays where they keep it, as with us, because a trainer reads it later.
"""

import os
import subprocess
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import orjson
import psutil
from proxy_load import SESSION, Plan, Step
from proxy_payload import OUTPUT_TOKENS, TURNS, Payload
from store_load import Contender, free_port, redis_executable

from services.common.wire.calls import decode_call, rows_of

OPENAI_PATH = "/v1/chat/completions"
KEY = "sk-benchmark-5f0c2e9d7a41"


class Gateway(Contender):
    """Something that chat completions are sent to. ``cpus`` as taskset takes them; "" leaves them to the kernel."""

    path = OPENAI_PATH
    extra: dict[str, Any] = {}
    """What a client adds to its bodies so that ids and logprobs come back."""
    opening: list[Step] = []
    closing: list[Step] = []
    package = ""
    """On PyPI; also the name of its virtual environment."""

    def __init__(self, upstream: str, payload: Payload, cpus: str, python: Path | None = None) -> None:
        super().__init__()
        self.upstream, self.payload, self._cpus, self._python = upstream, payload, cpus, python
        self.parts: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def base(self) -> str:
        """Where calls go."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def python(self) -> str:
        """The interpreter with the peer installed."""
        assert self._python is not None
        return str(self._python)

    @property
    def bin(self) -> Path:
        """Its console scripts."""
        return Path(self.python).parent

    def begin(self, part: str, command: list[str], cpus: str | None = None, **environment: str) -> None:
        """Starts a process on the contender's CPUs, or on others."""
        cpus = self._cpus if cpus is None else cpus
        self.start(["taskset", "-c", cpus, *command] if cpus else command, **environment)
        self.parts[part] = self.processes[-1]

    def plan(self, prefix: str, clients: int, **amount: Any) -> Plan:
        """The load on this contender."""
        requests = [{**request, **self.extra} for request in self.payload.requests]
        return Plan(
            base=self.base,
            path=self.path,
            requests=requests,
            prefix=prefix,
            clients=clients,
            opening=self.opening,
            closing=self.closing,
            key=KEY,
            **amount,
        )

    def rss_by_part(self) -> dict[str, float]:
        """Megabytes of each process, its children included."""
        return {part: round(sum(each.memory_info().rss for each in _family(run.pid)) / 2**20, 1) for part, run in self.parts.items()}

    def cpu_by_part(self) -> dict[str, float]:
        """CPU seconds so far of each process, its children included."""
        return {part: sum(sum(each.cpu_times()[:2]) for each in _family(run.pid)) for part, run in self.parts.items()}

    async def verify(self, session: str) -> None:
        """Raises where a session of calls left less than it should; only ours promises anything."""

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            await self.launch()
        except BaseException:
            print(f"{self.name} did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        children = [child for process in self.processes for child in _family(process.pid)[1:]]
        await super().__aexit__()
        for child in children:
            if child.is_running():
                child.kill()


class Direct(Gateway):
    """Nothing in between."""

    name = "direct"

    @property
    def base(self) -> str:
        return self.upstream

    async def launch(self) -> None:
        """There is nothing to start."""


class Frontdesk(Gateway):
    """This project's proxy with its store and a Redis that appends to a file every second: each call is durable before it is answered."""

    name = "frontdesk"
    path = f"/v1/sessions/{SESSION}{OPENAI_PATH}"
    opening = [Step("POST", "/v1/sessions", {"session_id": SESSION})]
    closing = [Step("POST", f"/v1/sessions/{SESSION}/seal")]

    def __init__(self, upstream: str, payload: Payload, cpus: str, python: Path, *, model: Path, store_cpus: str | None = None) -> None:
        super().__init__(upstream, payload, cpus, python)
        self._model, self._store_cpus = model, store_cpus
        self.store_port, self.redis_port = free_port(), free_port()

    async def launch(self) -> None:
        place = ["--port", str(self.redis_port), "--dir", str(self.folder), "--save", "", "--bind", "127.0.0.1"]
        safety = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]
        self.begin("redis", [redis_executable(), *place, *safety], self._store_cpus)
        config = self.folder / "config.yaml"
        config.write_bytes(orjson.dumps(self._settings()))  # JSON is YAML
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.begin("store", [self.python, "-m", "services.trajectory_store", "--config", str(config)], self._store_cpus, PYTHONPATH=path)
        self.begin("proxy", [self.python, "-m", "services.policy_proxy", "--config", str(config)], PYTHONPATH=path)
        await self.wait("/readyz")

    def _settings(self) -> dict[str, Any]:
        return {
            "cluster": {"fileroot": str(self.folder / "trial")},
            "actor": {"path": str(self._model)},
            "gconfig": {"max_tokens": 16_384},
            "services": {
                "trajectory_store": {"port": self.store_port, "redis_url": f"redis://127.0.0.1:{self.redis_port}/0"},
                "policy_proxy": {"port": self.port, "server_urls": [self.upstream]},
            },
        }

    async def verify(self, session: str) -> None:
        """The store has every call of the session, each extending the one before it, with a logprob for every generated token."""
        url = f"http://127.0.0.1:{self.store_port}/v1/sessions/{session}/calls"
        async with self.http.get(url) as answer:
            items = msgspec.msgpack.decode(await answer.read(), type=list[bytes])
        records = [decode_call(item) for item in items]
        parents = [record.parent for record in records]
        if len(records) != TURNS or parents != [None, *(record.call_id for record in records[:-1])]:
            raise RuntimeError(f"{len(records)} calls were captured, not a chain of {TURNS}")
        if any(row.n_output != OUTPUT_TOKENS or row.logprobs is None for row in rows_of(records)):
            raise RuntimeError("a call was captured without its tokens and logprobs")


class Litellm(Gateway):
    """litellm's proxy; it forwards ids and logprobs and keeps nothing."""

    name = package = "litellm"
    extra = {"logprobs": True, "return_token_ids": True}

    async def launch(self) -> None:
        model = {"model": "openai/policy", "api_base": f"{self.upstream}/v1", "api_key": "none"}
        config = {
            "model_list": [{"model_name": "policy", "litellm_params": model}],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"telemetry": False},
        }
        file = self.folder / "config.yaml"
        file.write_bytes(orjson.dumps(config))
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        self.begin("proxy", [str(self.bin / "litellm"), "--config", str(file), *place], **quiet)
        await self.wait("/health/liveliness")


class AgentLightning(Gateway):
    """agentlightning 1.x's gateway: request and response of every call in memory."""

    name = package = "agentlightning"
    path = f"/proxy/rollout/{SESSION}/attempt/0/mode/train/openai{OPENAI_PATH}"
    opening = [Step("POST", "/api/rollouts", [{"rollout_id": SESSION, "input": {}}])]
    closing = [
        Step("PATCH", f"/api/rollouts/{SESSION}", {"status": {"state": "running"}}),
        Step("PATCH", f"/api/rollouts/{SESSION}", {"status": {"state": "succeeded"}}),
    ]

    async def launch(self) -> None:
        place = ["host=127.0.0.1", f"port={self.port}", "default_proxy.model_name=policy"]
        self.begin("proxy", [str(self.bin / "agl-server"), *place])
        await self.wait("/healthz")
        await self.call("POST", "/api/models", orjson.dumps([{"model": "policy", "endpoint": f"{self.upstream}/v1"}]))


class Rllm(Gateway):
    """rllm-model-gateway with its default store: traces in memory."""

    name, package, store = "rllm", "rllm-model-gateway", "memory"
    path = f"/sessions/{SESSION}{OPENAI_PATH}"
    opening = [Step("POST", "/sessions", {"session_id": SESSION})]

    async def launch(self) -> None:
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--worker", self.upstream, "--log-level", "warning"]
        store = ["--store", self.store, "--db-path", str(self.folder / "traces.db")]
        self.begin("proxy", [self.python, "-m", "rllm_model_gateway", *place, *store])
        await self.wait("/health")


class RllmSqlite(Rllm):
    """rllm-model-gateway with traces in a SQLite file, its durable store."""

    name, store = "rllm_sqlite", "sqlite"


class SglangRouter(Gateway):
    """sglang-router, in Rust: forwards, and captures nothing. What a proxy costs at least."""

    name, package = "sglang_router", "sglang-router"
    extra = {"logprobs": True, "return_token_ids": True}

    async def launch(self) -> None:
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--worker-urls", self.upstream, "--policy", "cache_aware"]
        ports = ["--prometheus-port", str(free_port()), "--log-level", "warn"]
        self.begin("proxy", [self.python, "-m", "sglang_router.launch_router", *place, *ports])
        await self.wait("/readiness")


PEERS: tuple[type[Gateway], ...] = (Litellm, AgentLightning, Rllm, RllmSqlite, SglangRouter)


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
