"""Random interleavings of sessions, turns, aborts, pauses and weight updates give what a cache-free run gives."""

import dataclasses
from typing import Literal, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_harness import SMALL, Bench, ids

PREFIXES = [ids(1, 50), ids(1, 50)[:30] + ids(2, 40), ids(3, 20), []]
TIGHT = dataclasses.replace(SMALL, max_tail_tokens=40, max_trunk_tokens=160)

Control = Literal["abort", "pause abort", "pause retract", "pause in_place", "update", "flush"]


@dataclasses.dataclass(frozen=True)
class Begin:
    """Another session on a shared start."""

    prefix: int
    rest: int
    n: int
    temperature: float
    top_p: float
    new: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """A finished session goes on, with ``n`` tokens of a tool."""

    session: int
    n: int


@dataclasses.dataclass(frozen=True)
class Steps:
    """The engine runs."""

    n: int


BEGIN = st.builds(
    Begin,
    prefix=st.integers(0, len(PREFIXES) - 1),
    rest=st.integers(0, 3),
    n=st.integers(1, 40),
    temperature=st.sampled_from([1.0, 0.7, 0.0]),
    top_p=st.sampled_from([1.0, 0.8]),
    new=st.integers(1, 30),
)
OPERATIONS = st.one_of(
    BEGIN,
    BEGIN,
    st.builds(Turn, st.integers(0, 30), st.integers(0, 25)),
    st.builds(Steps, st.integers(1, 12)),
    st.builds(Steps, st.integers(1, 12)),
    st.sampled_from([*get_args(Control), "update", "update", "update"]),
)


def apply(bench: Bench, operation: Begin | Turn | Steps | Control, at: int) -> None:
    scheduler = bench.scheduler
    match operation:
        case Begin(prefix, rest, n, temperature, top_p, new):
            bench.submit(PREFIXES[prefix] + ids(100 + rest, n), at, temperature=temperature, top_p=top_p, max_new_tokens=new)
        case Turn(session, n) if bench.results:
            rid = list(bench.results)[session % len(bench.results)]
            prompt = bench.sent[rid][0] + bench.results[rid].output_ids + ids(at, n)
            bench.submit(prompt[:600], at, max_new_tokens=6)
        case Steps(n):
            bench.run(n)
        case "abort" if bench.sent:
            scheduler.abort(f"r{at % len(bench.sent)}", "test")
        case "pause abort" | "pause retract" | "pause in_place":
            scheduler.pause(operation.removeprefix("pause "))  # pyright: ignore[reportArgumentType]
            bench.run(2)
            scheduler.resume()
        case "update":
            bench.update(str(len(bench.models)))
        case "flush":
            assert scheduler.flush() == (not scheduler.active)
        case _:
            pass


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(OPERATIONS, min_size=15, max_size=40))
def test_interleavings(operations: list[Begin | Turn | Steps | Control]) -> None:
    bench = Bench(TIGHT)
    for at, operation in enumerate(operations):
        apply(bench, operation, at)
        active = bench.scheduler.active
        owned = sorted(s.slot.index for s in active if s.slot is not None)
        assert owned == [slot.index for slot in bench.scheduler.cache.slots if slot.busy]
        assert len(owned) == len(active) <= TIGHT.max_running_requests
    bench.finish()
