"""Many callers over few lanes, with rounds that fail and callers that leave: everybody else is answered, and no lane is lost."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.common.group_commit import Entry, GroupCommit

MOST_BYTES = 10
CALLERS = 40


class Broken(Exception):
    """A round that did not arrive."""


class Lanes:
    """Lanes that note what went over them. Rounds named in ``broken`` fail after half of their entries were told."""

    def __init__(self, count: int, broken: set[int]) -> None:
        self.busy = [False] * count
        self.rounds: list[list[int]] = []
        self._broken = broken

    async def send(self, lane: int, entries: Sequence[Entry[int, str, int]]) -> None:
        assert not self.busy[lane], "two rounds on one lane"
        self.busy[lane] = True
        try:
            number = len(self.rounds)
            self.rounds.append([entry.item for entry in entries])
            await asyncio.sleep(0.001)
            half = len(entries) // 2 if number in self._broken else len(entries)
            for entry in entries[:half]:
                entry.tell(f"done {entry.item}")
            if number in self._broken:
                raise Broken
        finally:
            self.busy[lane] = False


@given(
    n_lanes=st.integers(1, 3),
    broken=st.sets(st.integers(0, 20)),
    leaving=st.sets(st.integers(0, CALLERS - 1)),
    sizes=st.lists(st.integers(0, 6), min_size=CALLERS, max_size=CALLERS),
)
def test_everybody_who_stays_is_answered_once(n_lanes: int, broken: set[int], leaving: set[int], sizes: list[int]) -> None:
    asyncio.run(_everybody(n_lanes, broken, leaving, sizes))


async def _everybody(n_lanes: int, broken: set[int], leaving: set[int], sizes: list[int]) -> None:
    lanes = Lanes(n_lanes, broken)
    commit = GroupCommit[int, str, int](range(n_lanes), lanes.send, failure=Broken, most_bytes=MOST_BYTES)
    callers = [asyncio.create_task(commit.submit(number, sizes[number])) for number in range(CALLERS)]
    for number in sorted(leaving):
        await asyncio.sleep(0)
        callers[number].cancel()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    failed = 0
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, asyncio.CancelledError):
            assert number in leaving
        elif isinstance(outcome, Broken):
            failed += 1
        else:
            assert outcome == f"done {number}"
    assert failed <= sum(len(items) for number, items in enumerate(lanes.rounds) if number in broken)
    for items in lanes.rounds:
        assert sum(sizes[item] for item in items[:-1]) < MOST_BYTES
    # Every lane is free again: as many rounds run at once as there are lanes.
    lanes.rounds.clear()
    after = [asyncio.create_task(commit.submit(number, 0)) for number in range(n_lanes)]
    await asyncio.sleep(0)
    assert lanes.busy == [True] * n_lanes
    await asyncio.gather(*after, return_exceptions=True)


async def test_what_a_round_raises_of_another_kind_is_its_leaders_own() -> None:
    sent: list[list[int]] = []

    async def send(lane: None, entries: Sequence[Entry[int, str, None]]) -> None:
        sent.append([entry.item for entry in entries])
        await asyncio.sleep(0.001)
        if entries[0].item == 1:
            raise ZeroDivisionError
        for entry in entries:
            entry.tell("done")

    commit = GroupCommit[int, str, None]([None], send, failure=Broken, most_bytes=MOST_BYTES)
    outcomes = await asyncio.gather(*(commit.submit(number, 0) for number in range(4)), return_exceptions=True)
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [outcomes[0], *outcomes[2:]] == ["done"] * 3
    assert sent == [[0], [1, 2, 3], [2, 3]]
