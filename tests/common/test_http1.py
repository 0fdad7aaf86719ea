"""The wire under the service client, against servers that send exactly what a test says, byte by byte."""

import asyncio
import random
import ssl
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.http1 import IDLE_S, UNREAD_BYTES, ConnectionFailed, Pool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Thing: A\r\n\r\nok"
BODIES = [b"HTTP/1.1 204 No Content\r\n\r\n", OK, b"HTTP/1.1 500 No\r\ncontent-length: 1\r\n\r\n!"]


Play = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Plays a handler on every connection; counts connections and keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self.gone = asyncio.Event()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """The next request, head and body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        return self.requests[-1]


@asynccontextmanager
async def serving(play: Play, tls: ssl.SSLContext | None = None):
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await play(server, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            server.gone.set()
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


@asynccontextmanager
async def pool_of(server: Server) -> AsyncGenerator[Pool]:
    pool = Pool(server.url)
    try:
        yield pool
    finally:
        await pool.close()


def answering(*answers: bytes) -> Play:
    """Every connection gives these answers, each to one request, the last one again and again."""

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(1000):
            await server.request(reader)
            writer.write(answers[min(number, len(answers) - 1)])

    return play


def chunked(*parts: bytes) -> bytes:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + coded


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving(answering(OK)) as server, pool_of(server) as pool:
        for _ in range(3):
            assert await pool.request("POST", "/x", b"body", {"A-b": "c"}) == (200, {"content-length": "2", "x-thing": "A"}, b"ok")
        assert server.connections == 1
        await asyncio.gather(*(pool.request("GET", "/x", b"", {}) for _ in range(5)))
        assert server.connections == 5
    first = server.requests[0]
    assert first.startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nA-b: c\r\n" in first
    assert first.endswith(b"\r\n\r\nbody")


@given(st.lists(st.sampled_from([*BODIES, chunked(b"a", b"bc")]), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_answers_are_read_wherever_the_network_cuts_them(answers: list[bytes], cuts: random.Random) -> None:
    expected = {BODIES[0]: (204, b""), OK: (200, b"ok"), BODIES[2]: (500, b"!"), chunked(b"a", b"bc"): (200, b"abc")}

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await server.request(reader)
            at = 0
            while at < len(answer):
                size = cuts.randint(1, 30)
                writer.write(answer[at : at + size])
                await writer.drain()
                await asyncio.sleep(0)
                at += size

    async def ask() -> None:
        async with serving(play) as server, pool_of(server) as pool:
            for answer in answers:
                status, _, body = await pool.request("GET", "/", b"", {})
                assert (status, body) == expected[answer]
            assert server.connections == 1

    asyncio.run(ask())


async def test_what_comes_before_the_answer_and_a_body_without_a_length() -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nx: y\r\n\r\nall of ")
        await writer.drain()
        writer.write(b"it")

    async with serving(play) as server, pool_of(server) as pool:
        assert await pool.request("GET", "/", b"", {}) == (200, {"x": "y"}, b"all of it")
        await pool.request("GET", "/", b"", {})
    assert server.connections == 2


async def test_a_kept_connection_that_closes_as_the_request_leaves_costs_a_new_one_and_not_the_request() -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(OK)
        # The next request is read from the socket, so that it was sent, and not answered.
        await server.request(reader)

    async with serving(play) as server, pool_of(server) as pool:
        for _ in range(3):
            assert (await pool.request("POST", "/", b"x", {}))[2] == b"ok"
    assert (server.connections, len(server.requests)) == (3, 5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "closed before the answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "not HTTP|closed before"),
    ],
)
async def test_an_answer_that_is_none_is_told_so_and_not_asked_for_again(answer: bytes, why: str) -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(answer)

    async with serving(play) as server, pool_of(server) as pool:
        with pytest.raises(ConnectionFailed, match=why):
            await pool.request("GET", "/", b"", {})
    assert server.connections == 1


async def test_a_second_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async with serving(answering(OK + OK)) as server, pool_of(server) as pool:
        for _ in range(2):
            assert (await pool.request("GET", "/", b"", {}))[2] == b"ok"
    assert server.connections == 2


async def test_a_request_nobody_waits_for_any_more_is_hung_up_on() -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        await server.request(reader)

    async with serving(play) as server, ServiceClient("it", server.url) as client:
        with pytest.raises(RemoteError, match=r"took over 0.1 s") as late:
            await client.get("/", timeout_s=0.1)
        assert late.value.code == "timeout"
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_connections_that_rested_too_long_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(OK)) as server, pool_of(server) as pool:
        await pool.request("GET", "/", b"", {})
        now = asyncio.get_running_loop().time
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now() + IDLE_S + 1)
        await pool.request("GET", "/", b"", {})
    assert server.connections == 2


async def test_a_stream_is_read_as_it_comes_and_its_connection_used_again() -> None:
    go_on = asyncio.Event()

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        whole = chunked(b"first", b"second")
        middle = whole.index(b"6\r\n")
        writer.write(whole[:middle])
        await go_on.wait()
        writer.write(whole[middle:])
        await server.request(reader)
        writer.write(OK)

    async with serving(play) as server, ServiceClient("it", server.url) as client:
        parts: list[bytes] = []
        async with client.stream("POST", "/", data=b"{}", timeout_s=10, silence_s=5) as received:
            async for part in received:
                parts.append(part)
                go_on.set()
        assert parts == [b"first", b"second"]
        assert await client.request("GET", "/") == b"ok"
    assert server.connections == 1


async def test_a_stream_that_falls_silent_breaks_off_or_is_refused_says_which() -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await server.request(reader)).split()[1]
        if path == b"/refused":
            writer.write(b'HTTP/1.1 429 Busy\r\ncontent-length: 16\r\n\r\n{"code": "busy"}')
            return
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        if path == b"/silent":
            await server.request(reader)

    async with serving(play) as server, ServiceClient("it", server.url) as client:
        for path, status, code in (("/silent", None, "timeout"), ("/broken", None, "unreachable"), ("/refused", 429, "busy")):
            with pytest.raises(RemoteError) as failure:
                async with client.stream("POST", path, data=b"{}", timeout_s=10, silence_s=0.2) as received:
                    assert [part async for part in received] == [b"a"]
            assert (failure.value.status, failure.value.code) == (status, code)
        await asyncio.wait_for(server.gone.wait(), 5)


async def test_a_sender_is_held_up_where_nobody_reads() -> None:
    sent = 0
    size, n_parts = 1 << 16, 20 * UNREAD_BYTES >> 16

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (size * n_parts))
        for _ in range(n_parts):
            writer.write(bytes(size))
            await writer.drain()
            sent += size

    async with serving(play) as server, pool_of(server) as pool, pool.stream("GET", "/", b"", {}, 5) as (_, parts):
        while True:
            before = sent
            await asyncio.sleep(0.3)
            if sent == before:
                break
        assert 0 < sent < size * n_parts
        assert sum([len(part) async for part in parts]) == size * n_parts


async def test_targets_and_headers_cannot_break_the_request_in_two() -> None:
    async with serving(answering(OK)) as server:
        base = server.url.replace("//", "//us%40er:pa%20ss@")
        async with ServiceClient("it", f"{base}/under/") as client:
            await client.request("GET", "/a b\r\nx: y/é?q=%41#f", headers={"h": "ä"})
            with pytest.raises(ValueError, match="header X-Key: a line break"):
                await client.request("GET", "/", headers={"X-Key": "a\r\nX-Admin: 1"})
    head = server.requests[0]
    assert head.startswith(b"GET /under/a%20b%0D%0Ax:%20y/%C3%A9?q=%41#f HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nauthorization: Basic dXNAZXI6cGEgc3M=\r\n" in head
    for wrong in ("localhost:80", "ftp://x", "http://", "http://x:y"):
        with pytest.raises(ValueError, match=r"URL|Port"):
            Pool(wrong)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of a private authority, and a server that shows it."""
    pem, key = folder / "ca.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(pem)]
    subprocess.run([*command, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    return pem, context


async def test_tls_is_spoken_to_certificates_that_are_trusted_and_to_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, context = certificate(tmp_path)
    async with serving(answering(OK), context) as server:
        async with ServiceClient("it", server.url) as client:
            with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.request("GET", "/")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        async with ServiceClient("it", server.url) as client:
            assert await client.request("GET", "/") == b"ok"
