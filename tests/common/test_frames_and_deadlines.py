"""Messages come out of a stream as they went in, however it was cut; and what takes too long is called late, once."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.deadline import Deadline
from services.common.frames import FrameReader, framed


@given(st.lists(st.binary(max_size=40), max_size=20), st.lists(st.integers(1, 30), min_size=1))
def test_messages_come_out_as_they_went_in(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(framed, messages))
    reader, found, at, turn = FrameReader(40), list[bytes](), 0, 0
    while at < len(stream):
        piece = stream[at : at + cuts[turn % len(cuts)]]
        found += [*reader.feed(b""), *reader.feed(piece)]
        at, turn = at + len(piece), turn + 1
    assert found == messages
    assert not reader.in_message


def test_a_message_that_is_too_long_is_refused_by_its_length_alone() -> None:
    reader = FrameReader(10)
    assert reader.feed(framed(b"0123456789") + b"\0\0") == [b"0123456789"]
    assert reader.in_message
    with pytest.raises(ValueError, match="a message of 11 bytes, the limit is 10"):
        reader.feed(b"\0\x0b")


class Late:
    """A deadline of 60 ms, and how often it passed."""

    def __init__(self) -> None:
        self.count = 0
        self.rang = asyncio.Event()
        self.deadline = Deadline(0.06, self._expire)

    def _expire(self) -> None:
        self.count += 1
        self.rang.set()


async def test_what_ends_in_time_is_not_late_however_often() -> None:
    late = Late()
    for _ in range(20):
        late.deadline.start()
        await asyncio.sleep(0.01)
        late.deadline.stop()
    await asyncio.sleep(0.1)
    assert late.count == 0


async def test_what_takes_too_long_is_late_once_also_after_many_that_did_not() -> None:
    late = Late()
    for expected in (1, 2):
        for _ in range(3):
            late.deadline.start()
            await asyncio.sleep(0.01)
            late.deadline.stop()
        started = asyncio.get_running_loop().time()
        late.deadline.start()
        late.rang.clear()
        await late.rang.wait()
        assert 0.055 < asyncio.get_running_loop().time() - started < 1
        await asyncio.sleep(0.1)
        assert late.count == expected
