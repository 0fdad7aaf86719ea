"""Wire form of captured tokens: call records, which together are the token tree of a session.

A call record holds only what is new: the prompt tokens after its parent call's last token, and the generated tokens. The tree of a
session is its records linked by ``parent``; a row (one call as a training sequence) is the path from the root to that call.
msgpack, arrays as raw little-endian bytes (int32 ids, float32 logprobs).
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.common.wire.rollouts import SCHEMA_VERSION

Ids = NDArray[np.int32]
Logprobs = NDArray[np.float32]


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One LLM completion as captured by the proxy."""

    schema_version: int = SCHEMA_VERSION
    call_id: str
    session_id: str
    ordinal: int
    """0, 1, 2 … in the order the calls of the session finished."""
    parent: str | None = None
    """The call whose full sequence (prompt and output) this prompt extends; None starts a new branch at the root."""
    prompt: bytes
    """int32: prompt tokens after the parent's sequence (the whole prompt where parent is None)."""
    output: bytes
    """int32: generated tokens, end-of-turn token included where it was sampled."""
    logprobs: bytes | None = None
    """float32, one per output token, of the sampling distribution; None for demonstrations."""
    versions: list[tuple[int, int]]
    """Run-length (policy version, tokens) over the output."""
    finish_reason: str
    temperature: float = 1.0
    top_p: float = 1.0
    malformed_tool_call: bool = False
    digest: str = ""
    """Of the request body, for the retry guard."""
    response: dict[str, Any] = {}
    """The OpenAI answer as sent, for replay to a client that asks again."""
    sampling: dict[str, Any] = {}
    """SGLang's ``sampling_params`` as they were sent first; empty for demonstrations."""
    trace_id: str = ""
    """W3C trace id (32 hex digits) of the request, "" where it had none."""
    started_at: float = 0.0
    ended_at: float = 0.0
    server_s: float = 0.0
    """Seconds of the time between that went to policy servers and to waiting for one."""

    def prompt_ids(self) -> Ids:
        """int32 [n_prompt]."""
        return np.frombuffer(self.prompt, "<i4")

    def output_ids(self) -> Ids:
        """int32 [n_output]."""
        return np.frombuffer(self.output, "<i4")

    def output_logprobs(self) -> Logprobs | None:
        """float32 [n_output], or None for demonstrations."""
        return None if self.logprobs is None else np.frombuffer(self.logprobs, "<f4")

    def newest_version(self) -> int:
        """The newest policy version in the output; -1 where it has no tokens."""
        return max((version for version, _ in self.versions), default=-1)

    def output_versions(self) -> Ids:
        """int32 [n_output]: the policy version of each generated token."""
        values = [version for version, _ in self.versions]
        return np.repeat(np.asarray(values, "<i4"), [count for _, count in self.versions])


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One call as a training sequence: ``ids`` from the root on, the last ``n_output`` of them generated."""

    call_id: str
    ids: Ids
    n_output: int
    logprobs: Logprobs | None
    versions: Ids
    malformed_tool_call: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CallRecord)


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as raw little-endian int32."""
    return np.asarray(list(ids), "<i4").tobytes()


def pack_logprobs(logprobs: Iterable[float]) -> bytes:
    """Logprobs as raw little-endian float32."""
    return np.asarray(list(logprobs), "<f4").tobytes()


def encode_call(record: CallRecord) -> bytes:
    """msgpack bytes of one record. Raises ValueError where the arrays disagree."""
    n_output = len(record.output) // 4
    if record.logprobs is not None and len(record.logprobs) != len(record.output):
        raise ValueError(f"logprobs: {len(record.logprobs) // 4} values for {n_output} output tokens")
    if sum(count for _, count in record.versions) != n_output:
        raise ValueError(f"versions: the runs cover {sum(c for _, c in record.versions)} of {n_output} output tokens")
    return _encoder.encode(record)


def decode_call(data: bytes) -> CallRecord:
    """Inverse of `encode_call`. Raises ValueError for anything that is not a record, or newer than this reader."""
    try:
        record = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a call record: {error}") from error
    if record.schema_version > SCHEMA_VERSION:
        raise ValueError(f"schema_version: {record.schema_version} is newer than the {SCHEMA_VERSION} this service reads")
    return record


def rows_of(records: list[CallRecord]) -> list[Row]:
    """The rows of a session, in call order. Raises ValueError where a parent is missing."""
    paths: dict[str, Ids] = {}
    rows: list[Row] = []
    for record in sorted(records, key=lambda record: record.ordinal):
        if record.parent is not None and record.parent not in paths:
            raise ValueError(f"parent: call {record.call_id} extends {record.parent}, which is not in the session")
        base = paths[record.parent] if record.parent is not None else np.empty(0, "<i4")
        ids = np.concatenate([base, record.prompt_ids(), record.output_ids()])
        paths[record.call_id] = ids
        rows.append(
            Row(
                call_id=record.call_id,
                ids=ids,
                n_output=len(record.output) // 4,
                logprobs=record.output_logprobs(),
                versions=record.output_versions(),
                malformed_tool_call=record.malformed_tool_call,
            )
        )
    return rows
