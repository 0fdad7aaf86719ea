"""A fake trajectory store: the session and policy-version routes of the real one, in memory, with knobs for faults."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
from log_route import LogRoute
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.common.wire.call_log import LogEntry, LogOutcome, encode_log
from services.common.wire.calls import CallRecord, decode_call


@dataclass
class StoredSession:
    sealed: bool = False
    calls: dict[str, bytes] = field(default_factory=dict)
    intents: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeStore:
    """State and knobs."""

    sessions: dict[str, StoredSession] = field(default_factory=dict)
    latest: dict[str, Any] | None = None
    lose_answers: int = 0
    """So many recorded calls are answered with 503 although they were stored."""
    record_delay_s: float = 0.0
    intent_delay_s: float = 0.0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/healthz", self.healthz),
                Route("/v1/sessions/{sid}", self.open, methods=["PUT"]),
                Route("/v1/sessions/{sid}", self.view),
                Route("/v1/call_log", LogRoute(self.log), methods=["POST"]),
                Route("/v1/sessions/{sid}/calls", self.calls),
                Route("/v1/sessions/{sid}/rewards", self.rewards),
                Route("/v1/sessions/{sid}/seal", self.seal, methods=["POST"]),
                Route("/v1/policy_versions/latest", self.version),
            ]
        )

    def records(self, session_id: str) -> list[CallRecord]:
        records = [decode_call(data) for data in self.sessions[session_id].calls.values()]
        assert [record.ordinal for record in records] == list(range(len(records)))
        return records

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def open(self, request: Request) -> Response:
        session = self.sessions.setdefault(request.path_params["sid"], StoredSession())
        return _problem(409, "session_sealed") if session.sealed else self._view(request)

    async def rewards(self, request: Request) -> Response:
        return JSONResponse({"items": []})

    async def view(self, request: Request) -> Response:
        return self._view(request) if request.path_params["sid"] in self.sessions else _problem(404, "session_unknown")

    async def log(self, entries: list[LogEntry]) -> bytes | Response:
        await asyncio.sleep(self.record_delay_s if any(entry.record for entry in entries) else self.intent_delay_s)
        outcomes = [self._line(entry) for entry in entries]
        if self.lose_answers and any(entry.record for entry in entries):
            self.lose_answers -= 1
            return _problem(500, "lost")
        return encode_log(outcomes)

    def _line(self, entry: LogEntry) -> LogOutcome:
        session, call_id = self.sessions.get(entry.session_id), entry.call_id
        if session is None:
            return LogOutcome(404, 0, "session_unknown")
        if session.sealed:
            return LogOutcome(409, 0, "session_sealed")
        if entry.record:
            session.calls.setdefault(call_id, entry.record)
            session.intents.pop(call_id, None)
        elif session.intents.setdefault(call_id, entry.digest) != entry.digest:
            return LogOutcome(409, 0, "digest_mismatch")
        return LogOutcome(200, len(session.calls))

    async def calls(self, request: Request) -> Response:
        session = self.sessions.get(request.path_params["sid"])
        if session is None:
            return _problem(404, "session_unknown")
        return Response(msgspec.msgpack.encode(list(session.calls.values())), media_type="application/msgpack")

    async def seal(self, request: Request) -> Response:
        self.sessions[request.path_params["sid"]].sealed = True
        return self._view(request)

    async def version(self, request: Request) -> Response:
        return JSONResponse(self.latest) if self.latest else _problem(404, "no_policy_version")

    def _view(self, request: Request) -> Response:
        session_id = request.path_params["sid"]
        session = self.sessions[session_id]
        return JSONResponse(
            {
                "session_id": session_id,
                "sealed": session.sealed,
                "n_calls": len(session.calls),
                "open_intents": list(session.intents),
                "created_at": 1.0,
            }
        )


def _problem(status: int, code: str) -> Response:
    return JSONResponse({"code": code, "detail": code, "status": status}, status)
