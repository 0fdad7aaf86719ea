"""Owns joining a trajectory with the calls of its session, as the msgpack body of a batch.

Pure functions over what the session hash holds. A session that is missing, not sealed or has a call that was begun and never
recorded is incomplete: its calls are left out, because a hole in the token tree cannot be seen in what remains.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from services.common.wire.store import Batch, Episode

INTENT = b"i:"
"""Prefix of the fields of open intents."""
CALL = b"c:"
"""Prefix of the fields of call records."""
SEALED = b"sealed"

_batch_encoder = msgspec.msgpack.Encoder()


class _Ordinal(msgspec.Struct):
    """The one field of a call record that ordering needs; the rest is skipped, not decoded."""

    ordinal: int


_ordinal_decoder = msgspec.msgpack.Decoder(_Ordinal)


def calls_in_order(fields: Mapping[bytes, bytes]) -> list[bytes]:
    """The encoded call records of a session, by ordinal."""
    records = [value for name, value in fields.items() if name.startswith(CALL)]
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


def encode_calls(calls: list[bytes]) -> bytes:
    """msgpack array of encoded call records."""
    return _batch_encoder.encode(calls)
