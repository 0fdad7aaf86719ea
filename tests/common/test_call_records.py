"""Call records survive the wire exactly, refuse what does not fit together, and give back the rows of a session."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.wire.calls import CallRecord, decode_call, encode_call, pack_ids, pack_logprobs, rows_of
from services.common.wire.rollouts import SCHEMA_VERSION

ids = st.lists(st.integers(0, 2**31 - 1), max_size=20)


def record(number: int, parent: str | None, prompt: list[int], output: list[int], version: int = 3) -> CallRecord:
    return CallRecord(
        call_id=f"call-{number}",
        session_id="s",
        ordinal=number,
        parent=parent,
        prompt=pack_ids(prompt),
        output=pack_ids(output),
        logprobs=pack_logprobs([-0.5] * len(output)),
        versions=[(version, len(output))] if output else [],
        finish_reason="stop",
    )


@given(prompt=ids, output=ids)
def test_a_record_comes_back_as_it_was(prompt: list[int], output: list[int]) -> None:
    sent = record(0, None, prompt, output)
    got = decode_call(encode_call(sent))
    assert got == sent
    assert got.prompt_ids().tolist() == prompt
    assert got.output_ids().tolist() == output
    assert len(got.output_versions()) == len(output)


@settings(deadline=None)
@given(data=st.data())
def test_rows_are_the_paths_from_the_root_whatever_the_order_of_the_records(data: st.DataObject) -> None:
    records: list[CallRecord] = []
    paths: dict[str, list[int]] = {}
    for number in range(data.draw(st.integers(1, 6))):
        parent = data.draw(st.sampled_from([None, *paths]))
        prompt, output = data.draw(ids), data.draw(ids)
        paths[f"call-{number}"] = [*paths.get(parent or "", []), *prompt, *output]
        records.append(record(number, parent, prompt, output))
    rows = rows_of(data.draw(st.permutations(records)))
    assert [row.call_id for row in rows] == list(paths)
    for row, sent in zip(rows, records, strict=True):
        assert row.ids.tolist() == paths[row.call_id]
        assert row.n_output == len(sent.output) // 4


def test_a_missing_parent_is_named() -> None:
    with pytest.raises(ValueError, match="call call-1 extends call-0"):
        rows_of([record(1, "call-0", [1], [2])])


@pytest.mark.parametrize(
    ("change", "says"),
    [({"logprobs": pack_logprobs([-1.0])}, "logprobs: 1 values for 2"), ({"versions": [(1, 1)]}, "versions: the runs cover 1 of 2")],
)
def test_arrays_that_disagree_are_refused_before_they_are_sent(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_call(msgspec.structs.replace(record(0, None, [1], [2, 3]), **change))


def test_a_newer_schema_and_garbage_are_refused() -> None:
    newer = msgspec.msgpack.encode(msgspec.structs.replace(record(0, None, [1], [2]), schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(ValueError, match="is newer than"):
        decode_call(newer)
    with pytest.raises(ValueError, match="not a call record"):
        decode_call(b"\x81\xa1a\x01")


def test_demonstrations_have_no_logprobs() -> None:
    demonstration = msgspec.structs.replace(record(0, None, [1], [2]), logprobs=None)
    (row,) = rows_of([decode_call(encode_call(demonstration))])
    assert row.logprobs is None
    np.testing.assert_array_equal(row.versions, [3])
