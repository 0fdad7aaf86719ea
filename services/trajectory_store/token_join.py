"""Owns joining a trajectory with the calls of its session, as the msgpack body of a batch.

Pure functions over what the session hash holds. A session that is missing, not sealed or has a call that was begun and never
recorded is incomplete: its calls are left out, because a hole in the token tree cannot be seen in what remains.
The calls are records of their own until the session is packed (`tree_codec`), and one blob from then on.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from services.common.wire.store import Batch, Episode, Group
from services.trajectory_store.tree_codec import unpack_tree

INTENT = b"i:"
"""Prefix of the fields of open intents."""
CALL = b"c:"
"""Prefix of the fields of call records."""
SEALED = b"sealed"
TREE = b"tree"
FIXMAP, ARRAY32 = 0x80, 0xDD
"""First bytes of a msgpack map of up to 15 entries and of an array with a 32-bit length."""

_batch_encoder = msgspec.msgpack.Encoder()


class _Ordinal(msgspec.Struct):
    """The one field of a call record that ordering needs; the rest is skipped, not decoded."""

    ordinal: int


_ordinal_decoder = msgspec.msgpack.Decoder(_Ordinal)


def calls_in_order(fields: Mapping[bytes, bytes]) -> list[bytes]:
    """The encoded call records of a session, by ordinal."""
    if tree := fields.get(TREE):
        return unpack_tree(tree)
    return in_order(value for name, value in fields.items() if name.startswith(CALL))


def in_order(records: Iterable[bytes]) -> list[bytes]:
    """Encoded call records by ordinal."""
    return sorted(records, key=lambda record: _ordinal_decoder.decode(record).ordinal)


def is_complete(fields: Mapping[bytes, bytes]) -> bool:
    """Whether the token tree of a session is whole and frozen."""
    return SEALED in fields and not any(name.startswith(INTENT) for name in fields)


def episode_of(trajectory: dict[str, Any], fields: Mapping[bytes, bytes]) -> Episode:
    """One member of a batch. ``fields`` is the session hash, empty where there is none."""
    complete = is_complete(fields)
    return Episode(trajectory=trajectory, calls=calls_in_order(fields) if complete else [], complete=complete)


def encode_batch(batch: Batch) -> bytes:
    """msgpack."""
    return _batch_encoder.encode(batch)


def batch_head(batch: Batch, n_groups: int) -> bytes:
    """The beginning of an encoded batch of ``n_groups`` groups, which follow as `encode_group`; ``batch.groups`` is ignored.

    So a batch leaves group by group and is never in memory as a whole.
    """
    fields: dict[str, Any] = {
        "batch_id": batch.batch_id,
        "kind": batch.kind,
        "redelivered": batch.redelivered,
        "expires_at": batch.expires_at,
    }
    head = bytearray([FIXMAP | (len(fields) + 1)])
    for name, value in fields.items():
        head += _batch_encoder.encode(name) + _batch_encoder.encode(value)
    return bytes(head + _batch_encoder.encode("groups") + bytes([ARRAY32]) + n_groups.to_bytes(4, "big"))


def encode_group(group: Group) -> bytes:
    """msgpack."""
    return _batch_encoder.encode(group)


def encode_calls(calls: list[bytes]) -> bytes:
    """msgpack array of encoded call records."""
    return _batch_encoder.encode(calls)
