"""Owns ``POST /v1/call_log``: what a policy proxy writes for its calls, those of many sessions together.

For each call an intent before it leaves for a policy server, and its record before the agent gets the answer. The body is messages
(`services.common.frames`), each a msgpack array of entries, and so is the answer: arrays of as many outcomes, each as soon as all of its
entries are durable or refused. So one request is kept for many messages. An entry is written once however often it is sent.
"""

import msgspec


class LogEntry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One line of the log, ``[session_id, call_id, digest, record]``: an intent without a record, a record without a digest."""

    session_id: str
    call_id: str
    digest: str = ""
    """Of the request body."""
    record: bytes = b""
    """The encoded `CallRecord`."""


class LogOutcome(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What became of one line, ``[status, n_calls, code, detail]``: 200, or an HTTP status that says why it was not written."""

    status: int
    n_calls: int = 0
    """For an intent: the calls that the session has on record. A proxy that knows fewer reads the others first."""
    code: str = ""
    detail: str = ""


_entries = msgspec.msgpack.Decoder(list[LogEntry])
_outcomes = msgspec.msgpack.Decoder(list[LogOutcome])
_encoder = msgspec.msgpack.Encoder()


def encode_log(lines: list[LogEntry] | list[LogOutcome]) -> bytes:
    """Lines as they are sent."""
    return _encoder.encode(lines)


def decode_entries(body: bytes) -> list[LogEntry]:
    """Raises `ValueError` for a body that is no log."""
    try:
        return _entries.decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a call log: {error}") from error


def decode_outcomes(body: bytes) -> list[LogOutcome]:
    """Raises `ValueError` for a body that is no answer to a log."""
    try:
        return _outcomes.decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not the outcomes of a call log: {error}") from error
