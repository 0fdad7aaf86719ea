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
async def call_log(timeout_s: float = 10.0) -> AsyncGenerator[tuple[LogServer, CallLog]]:
    log, port = LogServer(), free_port()
    log.route = LogRoute(log.log)
    app = Starlette(routes=[Route("/v1/call_log", log.route, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        await until(lambda: server.started)
        async with ServiceClient("trajectory_store", f"http://127.0.0.1:{port}", timeout_s=timeout_s) as client:
            lines = CallLog(client, retry_s=0)
            keeping = group.create_task(lines.run())
            yield log, lines
            keeping.cancel()
        server.should_exit = True


def intent(call_id: str, session_id: str = "s") -> LogEntry:
    return LogEntry(session_id, call_id, "digest")


DONE = LogOutcome(200, 7)


async def test_what_waits_goes_out_together_and_each_line_has_its_own_outcome() -> None:
    async with call_log() as (log, lines):
        sent = [lines.write(intent(f"c{n}", "sealed" if n == 4 else "s")) for n in range(7)]
        await until(lambda: len(log.messages) == 1)
        assert not any(line.done() for line in sent)
        log.may_answer.set()
        done = await asyncio.gather(*sent)
        assert log.calls() == [["c0"], ["c1", "c2", "c3", "c4", "c5", "c6"]]
        assert done.pop(4) == LogOutcome(409, 0, "session_sealed", "no")
        assert done == [DONE] * 6
        assert lines.flows
        assert await lines.write(LogEntry("s", "later", record=b"record")) == DONE
        assert log.route.n_requests == 1


async def test_a_line_that_nobody_waits_for_takes_no_other_with_it() -> None:
    async with call_log() as (log, lines):
        sent = [lines.write(intent(f"c{n}")) for n in range(4)]
        await until(lambda: len(log.messages) == 1)
        sent[0].cancel()  # on its way
        sent[2].cancel()  # not yet sent
        log.may_answer.set()
        assert [await sent[1], await sent[3]] == [DONE] * 2
        assert log.calls() == [["c0"], ["c1", "c3"]]
        assert await asyncio.gather(*(lines.write(intent(f"again{n}")) for n in range(5))) == [DONE] * 5


async def test_a_request_that_the_store_has_ended_is_begun_anew_without_a_failure() -> None:
    async with call_log() as (log, lines):
        log.may_answer.set()
        for n in range(3):
            assert await lines.write(intent(f"c{n}")) == DONE
            assert log.route.n_requests == n + 1
            log.ends = True  # instead of an answer to the next
        assert log.calls() == [["c0"], ["c1"], ["c1"], ["c2"], ["c2"]]


async def test_a_store_that_says_nothing_is_late_and_what_it_was_told_is_sent_again() -> None:
    async with call_log(timeout_s=0.2) as (log, lines):
        log.may_answer.set()
        assert await lines.write(intent("c0")) == DONE
        log.may_answer.clear()
        late = await lines.write(intent("c1"))
        assert isinstance(late, RemoteError)
        assert (late.status, late.code) == (None, "timeout")
        assert log.calls() == [["c0"], ["c1"], ["c1"]], "in the kept request, then in one of its own"
        log.may_answer.set()
        assert await lines.write(intent("c2")) == DONE


BAD = "bad_answer"


@pytest.mark.parametrize(("status", "answer", "code"), [(503, None, "error"), (200, b"?", BAD), (200, encode_log([]), BAD)])
async def test_everybody_hears_of_a_message_that_failed(status: int, answer: bytes | None, code: str) -> None:
    async with call_log() as (log, lines):
        log.status, log.answer = status, answer
        sent = [lines.write(intent(f"c{n}")) for n in range(5)]
        await until(lambda: len(log.messages) == 1)
        log.may_answer.set()
        for outcome in await asyncio.gather(*sent):
            assert isinstance(outcome, RemoteError)
            assert (outcome.status, outcome.code) == (status, code)
        log.status, log.answer = 200, None
        assert await lines.write(intent("c9")) == DONE


async def test_a_store_that_is_not_there_is_an_error_and_comes_back() -> None:
    port = free_port()
    async with ServiceClient("trajectory_store", f"http://127.0.0.1:{port}") as client:
        lines = CallLog(client, retry_s=0)
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(lines.run())
            for n in range(2):
                outcome = await lines.write(intent(f"c{n}"))
                assert isinstance(outcome, RemoteError)
                assert (outcome.status, outcome.code) == (None, "unreachable")
            keeping.cancel()


async def test_many_large_records_are_spread_over_messages() -> None:
    async with call_log() as (log, lines):
        log.may_answer.set()
        record = bytes(MOST_BYTES // 2)
        assert await asyncio.gather(*(lines.write(LogEntry("s", f"c{n}", record=record)) for n in range(9))) == [DONE] * 9
        assert max(len(entries) for entries in log.messages) == 2
