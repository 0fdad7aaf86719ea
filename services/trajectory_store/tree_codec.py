"""Owns the packed form of bodies: the token tree of a session as one blob, and messages; zstd where it pays.

A call record holds only the tokens after its parent, so the tree is delta-coded already; packing the records together lets zstd see what
they repeat (field names, ids, texts). What the sessions of a trial repeat among each other is the beginning of their first prompt: the
policy and its tools, most of all tokens in a short episode. It is kept once as a `Prefix` and serves zstd as a dictionary (docs/store.md).
Pure functions.
"""

import hashlib
from collections.abc import Sequence

import msgspec
import zstandard

LEVEL = 1
"""Of zstd. Level 3 takes twice the time for 2 % fewer bytes of a token tree."""
PAYS_FROM = 256
"""Bytes. Below, the header eats the gain."""
MAX_BLOB = 2**30
"""Bytes a blob may unpack to; more is damage."""
ALIKE_BYTES = 4096
"""First prompts that agree in this much (1,024 tokens) share a prefix; shorter ones are not worth one."""
MAX_PREFIX = 256 * 1024
"""Bytes of a prefix."""
DIGEST_BYTES = 16

_MAGIC = zstandard.FRAME_HEADER
_PREFIXED = b"P"
"""First byte of a blob that begins with the digest of its prefix; neither msgpack arrays nor zstd frames nor spill references have it."""
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])


class _First(msgspec.Struct):
    """What is needed of the first call record; the rest is skipped, not decoded."""

    prompt: bytes
    parent: str | None = None


_first_decoder = msgspec.msgpack.Decoder(_First)


class Prefix:
    """The beginning of a prompt, known by the digest of its bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.digest = _digest(content)
        self.dictionary = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self.dictionary.precompute_compress(level=LEVEL)


def shared_prefix(records: Sequence[bytes]) -> bytes:
    """What other sessions may have in common with these encoded call records: their first prompt, b"" where it is too short to matter."""
    if not records:
        return b""
    first = _first_decoder.decode(records[0])
    return first.prompt[:MAX_PREFIX] if first.parent is None and len(first.prompt) >= ALIKE_BYTES else b""


def prefix_key(content: bytes) -> str:
    """Equal for prompts that share a prefix."""
    return _digest(content[:ALIKE_BYTES]).hex()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def squeeze(body: bytes) -> bytes:
    """``body``, compressed where that makes it smaller."""
    if len(body) < PAYS_FROM:
        return body
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(body)
    return packed if len(packed) < len(body) else body


def expand(blob: bytes) -> bytes:
    """Inverse of `squeeze`. Raises ValueError where the blob is damaged."""
    return _unzip(blob, zstandard.ZstdDecompressor()) if blob.startswith(_MAGIC) else blob


def _unzip(frame: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
    try:
        return decompressor.decompress(frame, max_output_size=MAX_BLOB)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd frame: {error}") from error


def pack_tree(records: Sequence[bytes], prefix: Prefix | None = None) -> bytes:
    """Encoded call records as one blob, in the given order."""
    body = _encoder.encode(records)
    if prefix is None:
        return squeeze(body)
    return _PREFIXED + prefix.digest + zstandard.ZstdCompressor(level=LEVEL, dict_data=prefix.dictionary).compress(body)


def prefix_of(blob: bytes) -> bytes:
    """The digest of the prefix that a blob needs, b"" where it needs none."""
    return blob[len(_PREFIXED) : len(_PREFIXED) + DIGEST_BYTES] if blob.startswith(_PREFIXED) else b""


def without_prefix(blob: bytes, prefix: Prefix) -> bytes:
    """A blob as `unpack_tree` takes it. Raises ValueError where it is damaged."""
    frame = blob[len(_PREFIXED) + DIGEST_BYTES :]
    return _unzip(frame, zstandard.ZstdDecompressor(dict_data=prefix.dictionary))


def unpack_tree(blob: bytes) -> list[bytes]:
    """Inverse of `pack_tree` for a blob that needs no prefix, or none any more. Raises ValueError where it is damaged."""
    try:
        return _decoder.decode(expand(blob))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a token tree: {error}") from error
