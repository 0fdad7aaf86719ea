"""Owns which policy server a call goes to: the one that has computed most of its prompt already, unless that is too busy.

A session stays with its server. The first call of a session goes where the longest known start of its prompt is cached; among servers
that know equally much, rendezvous hashing (Thaler and Ravishankar 1998) decides, so that every proxy decides alike; a server with more
than `BALANCE` times its share is passed over (bounded loads, Mirrokni et al. 2018). Pure but for the table of what went where.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeVar

from services.common.wire.calls import Ids

BLOCK_TOKENS = 256
MAX_BLOCKS = 128
BALANCE = 1.25
AFFINITY_SLACK = 8
"""A session stays with its server until that has this many more calls than the least loaded one."""
KNOWN_BLOCKS = 65_536
"""Prompt starts remembered; the one used longest ago is forgotten first."""


class Routable(Protocol):
    """A server as routing sees it."""

    @property
    def url(self) -> str: ...

    @property
    def load(self) -> int:
        """Calls there, of all clients."""
        ...


ServerT = TypeVar("ServerT", bound=Routable)


def block_keys(prompt: Ids) -> list[bytes]:
    """Digests of the first 256, 512, … ids, at most `MAX_BLOCKS`; of the whole prompt where it is shorter than one block."""
    data = memoryview(prompt.astype("<i4", copy=False).tobytes())
    size = BLOCK_TOKENS * 4
    digest = hashlib.blake2b(digest_size=8)
    keys: list[bytes] = []
    for start in range(0, max(len(data) - size + 1, 1), size)[:MAX_BLOCKS]:
        digest.update(data[start : start + size])
        keys.append(digest.copy().digest())
    return keys


class PrefixTable:
    """Which servers have been sent which prompt starts."""

    def __init__(self, capacity: int = KNOWN_BLOCKS) -> None:
        self._capacity = capacity
        self._servers: OrderedDict[bytes, frozenset[str]] = OrderedDict()

    def remember(self, keys: Sequence[bytes], url: str) -> None:
        """A prompt with these blocks went to ``url``."""
        for key in keys:
            self._servers[key] = self._servers.get(key, frozenset()) | {url}
            self._servers.move_to_end(key)
        while len(self._servers) > self._capacity:
            self._servers.popitem(last=False)

    def known_blocks(self, keys: Sequence[bytes], url: str) -> int:
        """How many of the first blocks ``url`` has seen."""
        for n_known, key in enumerate(keys):
            if url not in self._servers.get(key, frozenset()):
                return n_known
        return len(keys)

    def clear(self) -> None:
        """The servers have dropped what they had computed."""
        self._servers.clear()


def stays(preferred: str, servers: Sequence[ServerT]) -> ServerT | None:
    """The session's server while it is there and not overloaded."""
    least = min(server.load for server in servers)
    return next((server for server in servers if server.url == preferred and server.load <= least + AFFINITY_SLACK), None)


def pick(keys: Sequence[bytes], servers: Sequence[ServerT], known: PrefixTable) -> ServerT:
    """The server for a prompt of a new session."""
    bound = math.ceil(BALANCE * (sum(server.load for server in servers) + 1) / len(servers))
    allowed = [server for server in servers if server.load < bound] or list(servers)
    return max(allowed, key=lambda server: (known.known_blocks(keys, server.url), rendezvous(keys[-1], server.url)))


def rendezvous(key: bytes, url: str) -> bytes:
    """The weight of a server for a key; the highest wins, and only keys of a server that leaves move."""
    return hashlib.blake2b(url.encode(), key=key, digest_size=8).digest()
