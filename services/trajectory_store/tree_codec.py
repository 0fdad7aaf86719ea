"""Owns the packed form of bodies: the token tree of a session as one blob, and messages; zstd where it pays.

A call record holds only the tokens after its parent, so the tree is delta-coded already; packing them together lets zstd see what the
calls repeat (field names, ids, texts). The gain is 2 to 3 times (docs/store.md). Pure functions.
"""

from collections.abc import Sequence

import msgspec
import zstandard

LEVEL = 3
PAYS_FROM = 256
"""Bytes. Below, the header eats the gain."""
MAX_BLOB = 2**30
"""Bytes a blob may unpack to; more is damage."""

_MAGIC = zstandard.FRAME_HEADER
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])


def squeeze(body: bytes) -> bytes:
    """``body``, compressed where that makes it smaller."""
    if len(body) < PAYS_FROM:
        return body
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(body)
    return packed if len(packed) < len(body) else body


def expand(blob: bytes) -> bytes:
    """Inverse of `squeeze`. Raises ValueError where the blob is damaged."""
    if not blob.startswith(_MAGIC):
        return blob
    try:
        return zstandard.ZstdDecompressor().decompress(blob, max_output_size=MAX_BLOB)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd frame: {error}") from error


def pack_tree(records: Sequence[bytes]) -> bytes:
    """Encoded call records as one blob, in the given order."""
    return squeeze(_encoder.encode(records))


def unpack_tree(blob: bytes) -> list[bytes]:
    """Inverse of `pack_tree`. Raises ValueError where the blob is damaged."""
    try:
        return _decoder.decode(expand(blob))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a token tree: {error}") from error
