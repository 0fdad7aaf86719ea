"""The model server of the proxy benchmark: SGLang's and OpenAI's routes in one process, with replies that were ready before.

    python benchmarks/proxy_upstream.py --port N --folder DIR

``--folder`` holds ``chat.json``, ``generate.json`` and ``model/``. It speaks HTTP/1.1 on the bare transport and reads no more of a request
than it must (route, length, request id), so that it costs a contender next to nothing: there is no model here.
"""

import argparse
import asyncio
from pathlib import Path
from typing import cast

import orjson
import uvloop
from proxy_payload import RID

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
LENGTH = b"\r\ncontent-length:"


class Replies:
    """The body for a route."""

    def __init__(self, folder: Path) -> None:
        self._chat = (folder / "chat.json").read_bytes()
        self._before, self._after = (folder / "generate.json").read_bytes().split(RID)
        model = str(folder / "model")
        # What proxies and routers ask a server about itself, in one object, because each reads only the names that it knows.
        facts = {"status": "healthy", "success": True, "message": "", "weight_version": "0", "model_path": model, "loads": []}
        facts |= {"object": "list", "data": [{"id": "policy", "object": "model", "owned_by": "benchmark"}], "served_model_name": "policy"}
        self._facts = orjson.dumps(facts)

    def to(self, path: bytes, body: bytes) -> bytes:
        """The answer to a request."""
        if path.startswith(b"/generate"):
            return self._before + _rid(body) + self._after
        return self._chat if path.startswith(b"/v1/chat/completions") else self._facts


class Connection(asyncio.Protocol):
    """One client. Requests come with a length; chunked ones are not understood and end the connection."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._buffer = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]) + b"\r\n"
            n_body = _length(head)
            if n_body is None:
                self._transport.close()
                return
            whole = end + 4 + n_body
            if len(self._buffer) < whole:
                return
            body = bytes(self._buffer[end + 4 : whole])
            del self._buffer[:whole]
            method, _, rest = head.partition(b" ")
            if method not in (b"GET", b"POST"):
                # A client that asks whether HTTP/2 is understood.
                self._transport.close()
                return
            reply = self._replies.to(rest, body)
            self._transport.write(b"%s%d\r\n\r\n%s" % (HEAD, len(reply), reply))


def _length(head: bytes) -> int | None:
    """Bytes of the body; None where it is chunked."""
    lower = head.lower()
    at = lower.find(LENGTH)
    if at < 0:
        return None if b"transfer-encoding" in lower else 0
    return int(head[at + len(LENGTH) : head.index(b"\r\n", at + 2)])


def _rid(body: bytes) -> bytes:
    at = body.find(b'"rid":"')
    return body[at + 7 : body.index(b'"', at + 7)] if at >= 0 else b"rid"


async def serve(port: int, folder: Path) -> None:
    """Until it is killed."""
    replies = Replies(folder)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(replies), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.folder))


if __name__ == "__main__":
    main()
