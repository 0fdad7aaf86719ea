"""Real ASGI apps on real ports that speak the store's and the proxy's protocol, for tests of the agent runner."""

import asyncio
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse

from services.agent_runner.domains import TaskSpec
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Demonstration, Kind, RolloutRequest, Sampling, TaskRef

Json = dict[str, Any]
Policy = Callable[[str, Json], "Json | Response"]
"""(session id, chat body) -> the assistant message, or a whole answer such as an error."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class LiveApp:
    """An app behind uvicorn in a thread. `stop` and `start` again keep the port, as a restarted process does."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.port = free_port()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "LiveApp":
        settings = uvicorn.Config(self.app, host="127.0.0.1", port=self.port, log_config=None, ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        give_up_at = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < give_up_at, "the app did not start"
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            self._thread.join(timeout=20)
            self._server = None


class FakeProxy:
    """policy_proxy's episode routes with a policy given as a function. Keeps sessions over a restart, as the real one does in the store."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.version = 3
        self.delay_s = 0.0
        self.calls: dict[str, list[Json]] = defaultdict(list)
        self.call_ids: list[str] = []
        self.demonstrations: dict[str, list[Json]] = defaultdict(list)
        self.opened: set[str] = set()
        self.sealed: set[str] = set()
        self.seal_status = 200
        self.answers: dict[str, Json] = {}
        self.app = FastAPI()
        self.app.add_api_route("/healthz", lambda: {"status": "ok"})
        self.app.add_api_route("/v1/sessions", self.open, methods=["POST"])
        self.app.add_api_route("/v1/sessions/{sid}/v1/chat/completions", self.complete, methods=["POST"])
        self.app.add_api_route("/v1/sessions/{sid}/demonstrations", self.demonstrate, methods=["POST"])
        self.app.add_api_route("/v1/sessions/{sid}/seal", self.seal, methods=["POST"])

    async def open(self, request: Request) -> Json:
        sid = (await request.json())["session_id"]
        self.opened.add(sid)
        return {"session_id": sid, "api_key": f"key-{sid}", "base_url": f"/v1/sessions/{sid}/v1"}

    async def complete(self, sid: str, request: Request, idempotency_key: str = Header(), authorization: str = Header()) -> Response:
        assert authorization == f"Bearer key-{sid}"
        body = await request.json()
        await asyncio.sleep(self.delay_s)
        self.call_ids.append(idempotency_key)
        if idempotency_key not in self.answers:
            message = self.policy(sid, body)
            if isinstance(message, Response):
                return message
            self.calls[sid].append(body)
            self.answers[idempotency_key] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return JSONResponse(self.answers[idempotency_key], headers={"X-Policy-Version": str(self.version)})

    async def demonstrate(self, sid: str, request: Request) -> Json:
        self.demonstrations[sid].append(await request.json())
        return {"call_id": f"{sid}-{len(self.demonstrations[sid])}"}

    async def seal(self, sid: str) -> Response:
        if sid not in self.opened:
            return JSONResponse({"code": "session_unknown", "detail": f"no session {sid}"}, 404)
        self.sealed.add(sid)
        return JSONResponse({}, self.seal_status)


def openai_error(status: int, code: str) -> Response:
    return JSONResponse({"error": {"message": f"{code}!", "type": "server_error", "code": code, "param": None}}, status)


class FakeStore:
    """trajectory_store's worker routes in memory: leases without expiry, which a test takes away by hand."""

    def __init__(self) -> None:
        self.queue: list[RolloutRequest] = []
        self.limits: list[int] = []
        self.leased: dict[str, RolloutRequest] = {}
        self.lost: set[str] = set()
        self.heartbeats = 0
        self.released: list[Json] = []
        self.trajectories: dict[str, Json] = {}
        self.lease_headers: dict[str, str | None] = {}
        self.app = FastAPI()
        self.app.add_api_route("/healthz", lambda: {"status": "ok"})
        self.app.add_api_route("/v1/rollouts/lease", self.lease, methods=["POST"])
        self.app.add_api_route("/v1/rollouts/heartbeat", self.heartbeat, methods=["POST"])
        self.app.add_api_route("/v1/rollouts/release", self.release, methods=["POST"], status_code=204)
        self.app.add_api_route("/v1/trajectories/{episode_id}", self.put, methods=["PUT"])
        self.app.add_api_route("/v1/trajectories/{episode_id}", self.get, methods=["GET"])
        self.app.add_api_route("/v1/trajectories", self.page, methods=["GET"])

    async def lease(self, request: Request) -> Json:
        body = await request.json()
        self.limits.append(body["limit"])
        for _ in range(20):
            if self.queue:
                break
            await asyncio.sleep(min(body["wait_s"], 0.2) / 20)
        taken, self.queue = self.queue[: body["limit"]], self.queue[body["limit"] :]
        leases: list[Json] = []
        for one in taken:
            lease_id = f"lease-{one.episode_id}-{one.attempt}"
            self.leased[lease_id] = one
            leases.append({"lease_id": lease_id, "request": one.model_dump(mode="json"), "expires_at": time.time() + body["ttl_s"]})
        return {"leases": leases}

    async def heartbeat(self, request: Request) -> Json:
        self.heartbeats += 1
        return {"lost": [lease for lease in (await request.json())["lease_ids"] if lease in self.lost]}

    async def release(self, request: Request) -> None:
        self.released.append(await request.json())

    async def put(self, episode_id: str, request: Request, x_lease_id: str | None = Header(default=None)) -> Json:
        self.trajectories[episode_id] = await request.json()
        self.lease_headers[episode_id] = x_lease_id
        self.leased.pop(x_lease_id or "", None)
        return {"outcome": "stored"}

    async def get(self, episode_id: str) -> Response:
        if episode_id not in self.trajectories:
            return JSONResponse({"code": "not_found", "detail": "unknown episode"}, 404)
        return JSONResponse(self.trajectories[episode_id])

    async def page(self, after: int, limit: int, kind: str) -> Json:
        everything = list(self.trajectories.values())
        page = [one | {"messages": []} for one in everything[after : after + limit] if one["kind"] == kind]
        return {"items": page, "next": min(after + limit, len(everything))}


class FakeJudge:
    """An OpenAI-compatible server that answers what ``answers`` yields next, the last one again and again."""

    def __init__(self, *answers: "str | Response") -> None:
        self.answers = list(answers)
        self.bodies: list[Json] = []
        self.app = FastAPI()
        self.app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"])

    async def complete(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Response):
            return answer
        message = {"role": "assistant", "content": answer}
        return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def verdicts(*met: object) -> str:
    """A judge's answer."""
    return json.dumps({"results": [{"expectedOutcome": "?", "reasoning": "seen", "metExpectation": one} for one in met]})


class FakeUsers:
    """user_simulator's one route with a user given as a function of the messages that it sees."""

    def __init__(self, reply: Callable[[list[Json]], "Json | Response"]) -> None:
        self.reply = reply
        self.delay_s = 0.0
        self.bodies: list[Json] = []
        self.app = FastAPI()
        self.app.add_api_route("/v1/turns", self.turn, methods=["POST"])

    async def turn(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        await asyncio.sleep(self.delay_s)
        answer = self.reply(self.bodies[-1]["messages"])
        return answer if isinstance(answer, Response) else JSONResponse(answer)


def config_for(
    *, store: str = "", proxy: str = "", users: str = "", econfig: Json | None = None, rollout: Json | None = None, **runner: float
) -> ExperimentConfig:
    """A config whose services lie at the given addresses."""
    services = {
        "trajectory_store": {"url": store or None},
        "policy_proxy": {"url": proxy or None},
        "user_simulator": {"url": users or None, "turn_timeout_s": 5},
        "agent_runner": {"call_timeout_s": 10, "lease_ttl_s": 0.3, **runner},
    }
    env = {"solo_mode": True, "backend": "inspect_evals"} | (econfig or {})
    return ExperimentConfig.model_validate({"services": services, "econfig": env, "rollout": rollout or {}})


def rollout(
    task: TaskSpec, *, episode_id: str = "e1", solo: bool = True, quality: str | None = None, seed: int = 0, max_steps: int = 200
) -> RolloutRequest:
    """A request to play one task of telecom's `full`, or of another domain's first split."""
    split = "full" if task.domain == "telecom" else "base"
    return RolloutRequest(
        episode_id=episode_id,
        group_id="g1",
        kind=Kind.DEMO if quality else Kind.TRAIN,
        task=TaskRef(domain=task.domain, split=split, task_id=task.task_id, solo_mode=solo),
        sampling=Sampling(seed=5),
        seed=seed,
        max_steps=max_steps,
        demonstration=Demonstration.model_validate({"quality": quality}) if quality else None,
    )


def tool_call(name: str, arguments: str = "{}", call_id: str = "c") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def says(*calls: Json, content: str | None = None) -> Json:
    """An assistant message."""
    message: Json = {"role": "assistant", "content": content}
    return message | {"tool_calls": list(calls)} if calls else message


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits for a condition with a deadline."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        await asyncio.sleep(0.01)
