"""Owns messages within a stream of bytes: each is its length in four bytes, the highest first, and then so many bytes.

Refuses messages over a limit as soon as their length is known. What is in a message is for others to say.
"""

import struct

_LENGTH = struct.Struct(">I")


def framed(message: bytes) -> bytes:
    """A message as it is sent."""
    return _LENGTH.pack(len(message)) + message


class FrameReader:
    """Cuts what arrives into messages. ``most_bytes``: of one message."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._rest = bytearray()

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end with this data. Raises `ValueError`, after which the stream cannot be read any more."""
        if data and not self._rest and self._end(data, 0) == len(data):
            # One whole message, as nearly always.
            return [data[_LENGTH.size :]]
        self._rest += data
        messages: list[bytes] = []
        at = 0
        while 0 < (end := self._end(self._rest, at)) <= len(self._rest):
            messages.append(bytes(self._rest[at + _LENGTH.size : end]))
            at = end
        del self._rest[:at]
        return messages

    def _end(self, data: bytes | bytearray, at: int) -> int:
        """Where the message that begins at ``at`` ends; 0 where its length has not come."""
        if len(data) - at < _LENGTH.size:
            return 0
        (length,) = _LENGTH.unpack_from(data, at)
        if length > self._most_bytes:
            raise ValueError(f"a message of {length} bytes, the limit is {self._most_bytes}")
        return at + _LENGTH.size + length
