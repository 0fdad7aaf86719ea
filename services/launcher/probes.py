"""Owns asking a process on this machine whether it answers: one short exchange over TCP, with a deadline, nothing kept open."""

import asyncio
from contextlib import suppress

from services.launcher.process import Probe

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
PROBE_TIMEOUT_S = 5.0


def http_probe(host: str, port: int, path: str = "/healthz") -> Probe:
    """Whether ``GET path`` is answered with 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()

    async def answers() -> bool:
        return await _exchange(host, port, request, b"HTTP/1.1 200")

    return answers


def redis_probe(host: str, port: int) -> Probe:
    """Whether Redis answers PING with PONG, which it does not while it loads its data."""

    async def answers() -> bool:
        return await _exchange(host, port, b"PING\r\n", b"+PONG")

    return answers


async def _exchange(host: str, port: int, request: bytes, expected: bytes) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(ANY_ADDRESS.get(host, host), port)
            try:
                writer.write(request)
                return await reader.readexactly(len(expected)) == expected
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
