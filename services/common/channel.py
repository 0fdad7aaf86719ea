"""Owns a channel to a route that answers messages with messages: one POST that is kept open, and costs a fraction of a request for each.

Messages are `frames` in the body and in the answer, one at a time. Whatever lies between must pass bodies on as they come. The other side
may end the request whenever it has answered; then it is begun anew. Refuses to send twice by itself: `send` says that no answer came, and
`ask` sends again only as far as its caller allows.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from services.common.deadline import Deadline
from services.common.errors import RemoteError
from services.common.frames import FrameReader, framed
from services.common.http import ServiceClient
from services.common.http1 import ConnectionFailed, Dialogue

MOST_ANSWER_BYTES = 64 * 2**20

Told = Callable[[bytes | RemoteError], None]
"""Gets the answer to a message, or why there is none."""


class Channel:
    """Messages to one route. Each has the client's ``timeout_s``."""

    def __init__(self, client: ServiceClient, path: str) -> None:
        self._client = client
        self._path = path
        self._deadline = Deadline(client.timeout_s, self._expire)
        self._frames = FrameReader(MOST_ANSWER_BYTES)
        self._dialogue: Dialogue | None = None
        self._told: Told | None = None

    @property
    def open(self) -> bool:
        """Whether a message can be sent now."""
        return self._dialogue is not None and not self._dialogue.ended and self._told is None

    def send(self, message: bytes, told: Told) -> None:
        """Sends a message on an open channel; where it goes wrong, the channel is closed before ``told`` hears of it."""
        assert self._dialogue is not None
        self._told = told
        self._deadline.start()
        self._dialogue.send(framed(message))

    async def ask(self, message: bytes, *, retry_s: float) -> bytes:
        """The answer to a message, over a new request where there is none; sent again while that may help. Raises `RemoteError`."""
        return await self._client.repeated(partial(self._attempt, message), retry_s)

    def close(self) -> None:
        """Ends the request; whoever waits for an answer hears of it."""
        self._fail("unreachable", "the channel was closed")

    async def _attempt(self, message: bytes) -> bytes:
        if not self.open:
            await self._begin()
        answer: asyncio.Future[bytes | RemoteError] = asyncio.get_running_loop().create_future()
        self.send(message, partial(_tell, answer))
        try:
            found = await answer
        except asyncio.CancelledError:
            self.close()
            raise
        if isinstance(found, RemoteError):
            raise found
        return found

    async def _begin(self) -> None:
        self.close()
        self._frames = FrameReader(MOST_ANSWER_BYTES)
        try:
            async with asyncio.timeout(self._client.timeout_s):
                self._dialogue = await self._client.dialogue(self._path, self._heard)
        except TimeoutError:
            raise self._failure("timeout", f"no connection within {self._client.timeout_s:g} s") from None
        except (ConnectionFailed, OSError) as error:
            raise self._failure("unreachable", repr(error)) from error

    def _heard(self) -> None:
        """Something came, or the answer has ended."""
        dialogue = self._dialogue
        if dialogue is None or self._told is None:
            return
        if dialogue.status >= 300:
            if dialogue.ended:
                self._tell(self._client.remote_error(dialogue.status, dialogue.take()))
            return
        try:
            messages = self._frames.feed(dialogue.take())
        except ValueError as error:
            self._fail("bad_answer", str(error))
            return
        if messages:
            self._tell(messages[0])
        elif dialogue.ended:
            self._fail("unreachable", "the answer ended before this was answered")

    def _expire(self) -> None:
        self._fail("timeout", f"no answer within {self._client.timeout_s:g} s")

    def _fail(self, code: str, reason: str) -> None:
        self._tell(self._failure(code, reason))

    def _failure(self, code: str, reason: str) -> RemoteError:
        return RemoteError(self._client.name, None, code, f"POST {self._client.base_url}{self._path}: {reason}")

    def _tell(self, outcome: bytes | RemoteError) -> None:
        told, self._told = self._told, None
        self._deadline.stop()
        if isinstance(outcome, RemoteError) and self._dialogue is not None:
            dialogue, self._dialogue = self._dialogue, None
            dialogue.close()
        if told is not None:
            told(outcome)


def _tell(answer: asyncio.Future[bytes | RemoteError], outcome: bytes | RemoteError) -> None:
    if not answer.done():
        answer.set_result(outcome)
