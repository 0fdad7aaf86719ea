"""Owns the prefixes of a trial in Redis: what its prompts begin with, kept once however many sessions have it.

A prefix is found by its content, so a blob that names one can only mean these bytes. The first `PREFIXES_KEPT` are kept as long as the
trial, because any trajectory may need them and together they are small: retention takes trajectories away and leaves prefixes alone, and
no count of references can go wrong. Further prompts are packed without one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.errors import ServiceError
from services.trajectory_store.keys import PREFIXES_KEPT
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.tree_codec import Prefix, pack_tree, prefix_key, prefix_of, shared_prefix, without_prefix


class PrefixLost(ServiceError):
    """A token tree names a prefix that is not there."""

    status, code, title = 500, "prefix_lost", "Prefix lost"


@dataclass(frozen=True, slots=True)
class Packed:
    """A token tree to be stored."""

    blob: bytes
    digest: str
    """Of the prefix that it needs, which Redis must have when the blob is written; "" for none."""


class Prefixes:
    """The prefixes of one trial, those in use remembered by this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_digest: dict[bytes, Prefix] = {}
        self._by_key: dict[str, Prefix | None] = {}

    async def pack(self, records: Sequence[bytes]) -> Packed:
        """Packs encoded call records, in the given order."""
        content = shared_prefix(records)
        prefix = await self._of(content) if content else None
        return Packed(pack_tree(records, prefix), prefix.digest.hex() if prefix else "")

    async def restore(self, digest: str) -> None:
        """Writes a prefix again that Redis forgot with the rest of its last second."""
        prefix = self._by_digest[bytes.fromhex(digest)]
        await self._database.run("register_prefix", prefix_key(prefix.content), digest, prefix.content, 1)

    async def plain(self, blob: bytes) -> bytes:
        """A token tree that needs no prefix any more. Raises `PrefixLost`."""
        digest = prefix_of(blob)
        return without_prefix(blob, await self._named(digest)) if digest else blob

    async def _named(self, digest: bytes) -> Prefix:
        if digest not in self._by_digest:
            content = await self._database.command("HGET", self._database.keys.prefixes, digest.hex())
            if content is None:
                raise PrefixLost(f"the prefix {digest.hex()} of a token tree is not there")
            self._by_digest[digest] = Prefix(content)
        return self._by_digest[digest]

    async def _of(self, content: bytes) -> Prefix | None:
        key = prefix_key(content)
        if key not in self._by_key:
            if len(self._by_key) > 2 * PREFIXES_KEPT:
                self._by_key.clear()  # mostly prompts that got none
            self._by_key[key] = await self._register(key, Prefix(content))
        return self._by_key[key]

    async def _register(self, key: str, prefix: Prefix) -> Prefix | None:
        """The prefix of a key: the given one, the one that another process registered, or None where there are enough."""
        digest = await self._database.run("register_prefix", key, prefix.digest.hex(), prefix.content, 0)
        if digest is None:
            return None
        self._by_digest.setdefault(prefix.digest, prefix)
        return await self._named(bytes.fromhex(digest.decode()))
