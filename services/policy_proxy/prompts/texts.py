"""Owns prompt texts whose beginning is known by its digest alone.

The text of a long episode is hundreds of kilobytes, the same in every call but for its end, and nobody keeps it. A `Text` holds the
digest state of the beginning and the bytes of the rest, so that digests of later prefixes go on from there. Refuses (raises
`BeginningNeeded`) questions about the beginning; who can write the whole text again then does.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol, Self

import msgspec

DIGEST_BYTES = 16


class Digest(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def copy(self) -> Self: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


class BeginningNeeded(Exception):
    """The answer depends on the part of a text that is not at hand."""


def new_digest(data: bytes = b"") -> Digest:
    """The running digest (blake2b, 128 bit) of ``data``."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES)


class Text(msgspec.Struct, frozen=True):
    """A text in UTF-8; all lengths are in bytes."""

    skipped: int
    """Bytes that are not at hand."""
    beginning: Digest
    """Of the skipped bytes; never updated, only copied."""
    rest: bytes

    @classmethod
    def of(cls, text: str) -> "Text":
        """A text that is at hand as a whole."""
        return cls(0, new_digest(), text.encode())

    def __len__(self) -> int:
        return self.skipped + len(self.rest)

    def digests(self, lengths: Iterable[int]) -> dict[int, str]:
        """The digest of each prefix that ends within the text, by length, in one pass. Raises `BeginningNeeded`."""
        view = memoryview(self.rest)
        running = self.beginning.copy()
        done, found = self.skipped, dict[int, str]()
        for length in sorted(set(lengths)):
            if length < self.skipped:
                raise BeginningNeeded
            if length > len(self):
                break
            running.update(view[done - self.skipped : length - self.skipped])
            done, found[length] = length, running.hexdigest()
        return found

    def after(self, length: int) -> str:
        """What follows the first ``length`` bytes. Raises `BeginningNeeded`; ValueError within a character."""
        if length < self.skipped:
            raise BeginningNeeded
        return self.rest[length - self.skipped :].decode()

    def after_text(self, other: "Text") -> str | None:
        """What follows ``other``, or None where this text does not start with it. Raises `BeginningNeeded`."""
        if len(other) > len(self):
            return None
        if len(other) < self.skipped:
            raise BeginningNeeded
        skipped = max(self.skipped, other.skipped)
        if self.digests([skipped]) != other.digests([skipped]):
            return None
        mine, others = self.rest[skipped - self.skipped :], other.rest[skipped - other.skipped :]
        return mine[len(others) :].decode() if mine.startswith(others) else None

    def ends_with(self, end: str) -> bool:
        """Whether the text, without white space behind it, ends so. Only what is at hand is looked at."""
        return self.rest[-4096:].rstrip().endswith(end.encode())
