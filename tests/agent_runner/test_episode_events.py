"""Following an episode: numbered events, resuming with Last-Event-ID, gaps, heartbeats, the end; over HTTP and in the log itself."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runner_fakes import says, tool_call
from runner_stack import Stack, playing, wait_until

from services.agent_runner.domains import TaskSpec
from services.agent_runner.episodes.events import EpisodeLog, IllegalPhase, Phase
from services.agent_runner.routes.sse import Streams
from services.common.errors import Busy
from services.common.wire.rollouts import RolloutRequest, TaskRef


@dataclass(frozen=True)
class Seen:
    number: int
    kind: str
    data: Any


def read(lines: Iterator[str]) -> Iterator[Seen | str]:
    """Events, and comments as they stand."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Seen(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def follow(stack: Stack, episode_id: str, after: int | None = None, count: int | None = None) -> list[Seen]:
    """Events until the stream ends, or the first ``count``."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found: list[Seen] = []
    with stack.http.stream("GET", f"/v1/episodes/{episode_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for one in read(answer.iter_lines()):
            found += [one] if isinstance(one, Seen) else []
            if len(found) == count:
                break
    return found


def test_an_episode_can_be_followed_to_its_end(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    stack.proxy.delay_s = 0.02
    episode_id = stack.start(task_id=small[0].task_id)
    events = follow(stack, episode_id)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert (events[0].kind, events[-1].kind) == ("started", "finished")
    trajectory = stack.view(episode_id)["trajectory"]
    assert [event.data for event in events if event.kind == "message"] == trajectory["messages"]
    assert events[-1].data == {key: value for key, value in trajectory.items() if key != "messages"}
    turns = [event.data for event in events if event.kind == "turn"]
    assert [turn["policy_version"] for turn in turns if turn["role"] == "agent"] == [3] * trajectory["n_turns"]


def test_a_client_that_reconnects_misses_nothing_and_gets_nothing_twice(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    stack.proxy.delay_s = 0.02
    episode_id = stack.start(task_id=small[0].task_id)
    events = follow(stack, episode_id, count=3)
    while events[-1].kind != "finished":
        events += follow(stack, episode_id, after=events[-1].number, count=2)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events == follow(stack, episode_id)
    assert [event.kind for event in follow(stack, episode_id, after=events[-2].number)] == ["finished"]


def test_an_episode_of_another_process_is_told_from_its_stored_trajectory(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    trajectory = stack.play(task_id=small[0].task_id)
    stack.store.trajectories["elsewhere"] = trajectory | {"episode_id": "elsewhere"}
    events = follow(stack, "elsewhere")
    assert [event.data for event in events[:-1]] == trajectory["messages"]
    assert (events[-1].kind, events[-1].data["reward"]) == ("finished", 1.0)
    assert stack.view("elsewhere")["turn"] == trajectory["n_turns"]


def test_a_stream_on_which_nothing_happens_is_kept_open(stack: Stack, small: list[TaskSpec]):
    stack.app.state.streams = Streams(heartbeat_s=0.05, limit=1)
    stack.proxy.delay_s = 30
    episode_id = stack.start(task_id=small[0].task_id)
    with stack.http.stream("GET", f"/v1/episodes/{episode_id}/events") as answer:
        stream = read(answer.iter_lines())
        assert next(stream).kind == "started"
        assert [next(stream) for _ in range(3)] == [": nothing new"] * 3
        second = httpx.get(f"{stack.http.base_url}/v1/episodes/{episode_id}/events")
        assert (second.status_code, "1 event streams are open" in second.json()["detail"]) == (429, True)

    def opens() -> bool:
        with stack.http.stream("GET", f"/v1/episodes/{episode_id}/events") as answer:
            return answer.status_code == 200

    wait_until(opens)


def test_a_stream_ends_when_the_episode_goes_away(stack: Stack, small: list[TaskSpec]):
    from runner_fakes import rollout

    stack.proxy.policy = lambda _sid, _body: says(tool_call("check_vpn_status"))
    stack.proxy.delay_s = 0.05
    stack.store.queue.append(rollout(small[0], episode_id="taken", max_steps=10_000))
    wait_until(lambda: stack.http.get("/v1/episodes/taken").status_code == 200)
    stack.store.lost = {"lease-taken-1"}
    assert follow(stack, "taken")[-1].kind == "stopped"


REQUEST = RolloutRequest(episode_id="e", group_id="g", task=TaskRef(task_id="t"))


@given(total=st.integers(0, 40), kept=st.integers(1, 12), seen=st.integers(0, 50))
def test_a_reader_is_told_what_it_missed(total: int, kept: int, seen: int):
    log = EpisodeLog(REQUEST, kept=kept)
    for index in range(1, total + 1):
        log.watch("tick", {"index": index})
    events = log.after(seen)
    start = seen if seen <= total else 0
    missed = sum(event.data["missed"] for event in events if event.kind == "gap")
    ticks = [event.number for event in events if event.kind == "tick"]
    assert missed + len(ticks) == total - start
    assert ticks == list(range(total - len(ticks) + 1, total + 1))
    assert [event.data["index"] for event in events if event.kind == "tick"] == ticks
    if missed:
        assert (events[0].kind, events[0].number) == ("gap", ticks[0] - 1)


async def test_a_slow_reader_of_a_fast_episode_gets_a_gap_and_the_end():
    log = EpisodeLog(REQUEST, kept=3)
    stream = Streams().open(log, 0)
    log.watch("tick", {"index": 1})
    assert b"id: 1\nevent: tick\n" in await anext(stream)
    for index in range(2, 10):
        log.watch("tick", {"index": index})
    log.stop("over")
    rest = [chunk async for chunk in stream]
    assert rest[0] == b'id: 7\nevent: gap\ndata: {"missed":6}\n\n'
    assert [chunk.split(b"\n")[1] for chunk in rest[1:]] == [b"event: tick", b"event: tick", b"event: stopped"]


async def test_readers_wake_up_with_each_event_and_only_then():
    log = EpisodeLog(REQUEST)
    readers = [asyncio.create_task(log.grown()) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(reader.done() for reader in readers)
    log.watch("tick", {})
    await asyncio.wait_for(asyncio.gather(*readers), 1)


def test_phases_go_one_way():
    log = EpisodeLog(REQUEST)
    log.begin()
    log.stop("over")
    with pytest.raises(IllegalPhase):
        log.begin()
    with pytest.raises(IllegalPhase):
        log.stop("again")
    assert log.phase is Phase.FINISHED


async def test_streams_are_limited():
    streams = Streams(limit=1)
    log = EpisodeLog(REQUEST)
    log.watch("tick", {})
    first = streams.open(log, 0)
    await anext(first)
    with pytest.raises(Busy):
        streams.open(log, 0)
    await first.aclose()
    await streams.open(log, 0).aclose()
