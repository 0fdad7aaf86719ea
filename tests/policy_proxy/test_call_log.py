"""How lines of the call log travel: together where they wait, each with its own outcome, and none lost with whoever sent it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from log_route import LogRoute
from proxy_servers import free_port
from server_rig import until
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.call_log import LogEntry, LogOutcome, encode_log
from services.policy_proxy.sessions.call_log import MOST_BYTES, CallLog


@dataclass
class LogServer:
    """A store that writes lines as soon as it may. Keeps the messages."""

    messages: list[list[LogEntry]] = field(default_factory=list[list[LogEntry]])
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200
    answer: bytes | None = None
    ends: bool = False
    """Ends the request once, where it should answer."""
    route: LogRoute = field(init=False)

    async def log(self, entries: list[LogEntry]) -> bytes | Response:
        self.messages.append(entries)
        await self.may_answer.wait()
        if self.ends:
            self.ends = False
            return Response(status_code=503)
        outcomes = [LogOutcome(409, 0, "session_sealed", "no") if entry.session_id == "sealed" else LogOutcome(200, 7) for entry in entries]
        return Response(status_code=self.status) if self.status != 200 else encode_log(outcomes) if self.answer is None else self.answer

    def calls(self) -> list[list[str]]:
        return [[entry.call_id for entry in entries] for entries in self.messages]


@asynccontextmanager
async def call_log() -> AsyncGenerator[tuple[LogServer, CallLog]]:
    log, port = LogServer(), free_port()
    log.route = LogRoute(log.log)
    app = Starlette(routes=[Route("/v1/call_log", log.route, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        await until(lambda: server.started)
        async with ServiceClient("trajectory_store", f"http://127.0.0.1:{port}") as client:
            lines = CallLog(client, retry_s=0)
            yield log, lines
            lines.close()
        server.should_exit = True


def intent(call_id: str, session_id: str = "s") -> LogEntry:
    return LogEntry(session_id, call_id, "digest")


async def test_what_waits_goes_out_together_and_each_line_has_its_own_outcome() -> None:
    async with call_log() as (log, lines):
        sent = [asyncio.create_task(lines.write(intent(f"c{n}", "sealed" if n == 4 else "s"))) for n in range(7)]
        await until(lambda: len(log.messages) == 1)
        log.may_answer.set()
        done = await asyncio.gather(*sent, return_exceptions=True)
        assert log.calls() == [["c0"], ["c1", "c2", "c3", "c4", "c5", "c6"]]
        refused = done.pop(4)
        assert isinstance(refused, RemoteError)
        assert (refused.status, refused.code, refused.detail) == (409, "session_sealed", "no")
        assert done == [7] * 6
        assert await lines.write(LogEntry("s", "later", record=b"record")) == 7
        assert log.route.n_requests == 1


async def test_a_leader_that_is_cancelled_takes_no_line_with_it() -> None:
    async with call_log() as (log, lines):
        sent = [asyncio.create_task(lines.write(intent(f"c{n}"))) for n in range(4)]
        await until(lambda: len(log.messages) == 1)
        sent[-1].cancel()  # waits for its turn
        sent[0].cancel()  # leads
        await until(lambda: len(log.messages) == 2)
        sent[1].cancel()  # leads the others now
        await until(lambda: len(log.messages) == 3)
        log.may_answer.set()
        done = await asyncio.gather(*sent, return_exceptions=True)
        gone = [place for place, outcome in enumerate(done) if isinstance(outcome, asyncio.CancelledError)]
        assert gone == [0, 1, 3]
        assert log.calls()[1:] == [["c1", "c2"], ["c2"]]
        assert await asyncio.gather(*(lines.write(intent(f"again{n}")) for n in range(5))) == [7] * 5


async def test_a_request_that_the_store_has_ended_is_begun_anew_without_a_failure() -> None:
    async with call_log() as (log, lines):
        log.may_answer.set()
        for n in range(3):
            assert await lines.write(intent(f"c{n}")) == 7
            assert log.route.n_requests == n + 1
            log.ends = True  # instead of an answer to the next
        assert log.calls() == [["c0"], ["c1"], ["c1"], ["c2"], ["c2"]]


BAD = "bad_answer"


@pytest.mark.parametrize(("status", "answer", "code"), [(503, None, "error"), (200, b"?", BAD), (200, encode_log([]), BAD)])
async def test_everybody_hears_of_a_request_that_failed(status: int, answer: bytes | None, code: str) -> None:
    async with call_log() as (log, lines):
        log.status, log.answer = status, answer
        sent = [asyncio.create_task(lines.write(intent(f"c{n}"))) for n in range(5)]
        await until(lambda: len(log.messages) == 1)
        log.may_answer.set()
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(outcome, RemoteError)
            assert (outcome.status, outcome.code) == (status, code)
        log.status, log.answer = 200, None
        assert await lines.write(intent("c9")) == 7


async def test_many_large_records_are_spread_over_requests() -> None:
    async with call_log() as (log, lines):
        log.may_answer.set()
        record = bytes(MOST_BYTES // 2)
        assert await asyncio.gather(*(lines.write(LogEntry("s", f"c{n}", record=record)) for n in range(9))) == [7] * 9
        assert max(len(entries) for entries in log.messages) == 2
