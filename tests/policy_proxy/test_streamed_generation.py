"""Streams from policy servers: every token heard once, in order and rightly labelled, whatever happens to the server in mid-stream."""

import asyncio
from typing import Any

import orjson
import pytest
from fake_sglang import logprob_of, top_of
from hypothesis import given, settings
from hypothesis import strategies as st
from server_rig import EOS, greedy, server_rig, until

from services.common.errors import BadRequest, RemoteError, UpstreamFailed
from services.policy_proxy.servers.event_stream import event_data
from services.policy_proxy.servers.outputs import STALE, SegmentReader
from services.policy_proxy.servers.sglang import ServerKeys


@pytest.mark.parametrize("incremental", [False, True])
async def test_tokens_are_heard_as_they_come(incremental: bool) -> None:
    async with server_rig() as rig:
        (engine,) = rig.engines
        engine.incremental, engine.token_delay_s = incremental, 0.005
        engine.stall_after = 5
        call = rig.start(n_top=2)
        await until(lambda: len(rig.heard) == 5, "the first five tokens")
        engine.stall_after = -1
        done = await call
        rig.assert_true(done)
        assert done.top == [[(logprob, token) for logprob, token, _ in top_of(item, 2)] for item in done.ids]
        assert (done.finish, done.matched_stop, done.submissions) == ("stop", EOS, 1)
        assert done.cached_tokens == 1
        assert rig.exchanges[0].body["stream"] is True and rig.exchanges[0].body["top_logprobs_num"] == 2


async def test_without_a_listener_nothing_is_streamed() -> None:
    async with server_rig() as rig:
        done = await rig.start(stream=False)
        rig.assert_true(done, streamed=False)
        assert rig.exchanges[0].body["stream"] is False and "top_logprobs_num" not in rig.exchanges[0].body


async def test_a_server_that_dies_in_mid_stream_loses_nothing_it_said() -> None:
    async with server_rig(servers=2) as rig:
        for engine in rig.engines:
            engine.token_delay_s, engine.drop_after = 0.005, 4
        done = await rig.start()
        rig.assert_true(done)
        first, second, *_ = sorted(rig.exchanges, key=lambda item: item.rid)
        assert second.input_ids[: len(first.input_ids)] == first.input_ids and len(second.input_ids) > len(first.input_ids)
        assert second.params["max_new_tokens"] == 64 - (len(second.input_ids) - len(first.input_ids))


async def test_a_server_that_falls_silent_is_left_and_told_to_stop() -> None:
    async with server_rig(servers=2, silence_s=0.3) as rig:
        call = rig.start()
        for engine in rig.engines:
            engine.stall_after = 3
        await until(lambda: any(engine.aborted for engine in rig.engines), "the abort")
        for engine in rig.engines:
            engine.stall_after = -1
        rig.assert_true(await call)
        assert len({item.rid for item in rig.exchanges}) == len(rig.exchanges) > 1


async def test_nonsense_in_mid_stream_costs_nothing_before_it() -> None:
    async with server_rig(servers=2) as rig:
        for engine in rig.engines:
            engine.garbage_after = 5
        done = await rig.start()
        rig.assert_true(done)
        assert done.submissions == 3


async def test_a_server_that_only_talks_nonsense_fails_the_call() -> None:
    async with server_rig() as rig:
        rig.engines[0].garbage = True
        with pytest.raises(UpstreamFailed):
            await rig.start()
        assert rig.heard == []


async def test_what_a_server_refuses_is_the_callers_error_at_once() -> None:
    async with server_rig() as rig:
        rig.engines[0].answer_status = 400
        with pytest.raises(BadRequest, match="no"):
            await rig.start()


async def test_constrained_output_is_begun_anew_and_heard_once() -> None:
    """A grammar starts at its beginning with each request, so the partial output of an interrupted one is of no use."""
    async with server_rig() as rig:
        (engine,) = rig.engines
        engine.token_delay_s = 0.01
        call = rig.start(sampling=greedy(json_schema="{}"))
        await until(lambda: any(len(item.output_ids) > 3 for item in rig.exchanges))
        await rig.update(1)
        done = await call
        first, second = rig.exchanges
        assert first.finish == "abort" and second.input_ids == first.input_ids
        assert rig.heard == done.ids == second.output_ids
        assert done.versions == [(1, len(done.ids))]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_chat_route_gives_the_same(stream: bool) -> None:
    async with server_rig(api="chat") as rig:
        done = await rig.start(stream=stream, n_top=1, sampling=greedy(stop=("x",), top_k=5, json_schema='{"type": "object"}', seed=3))
        rig.assert_true(done, streamed=stream)
        body = rig.exchanges[0].body
        assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["seed"]) == (5, 0.0, 1.0, 3)
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert body["stop"] == ["x"] and body["stop_token_ids"] == [EOS] and body["top_logprobs"] == 1


async def test_the_servers_key_goes_with_every_request() -> None:
    async with server_rig(keys=ServerKeys({"Authorization": "Bearer k1"}, {"Authorization": "Bearer adm"})) as rig:
        rig.engines[0].api_key = "k1"
        rig.assert_true(await rig.start())
        await rig.update(1)
        assert set(rig.engines[0].control_keys) == {"Bearer adm"}


def event(n: int, total: int | None = None, label: str = "3", **meta: Any) -> dict[str, Any]:
    """A streamed event with tokens up to ``n``, the first of them ``total - …`` where it is incremental."""
    entries = [[logprob_of(token), token, None] for token in range(n)]
    base = {"finish_reason": None, "completion_tokens": n if total is None else total, "weight_version": label}
    return {"meta_info": base | {"output_token_logprobs": entries} | meta}


def test_an_event_of_older_weights_is_refused_before_anybody_hears_it() -> None:
    reader = SegmentReader(pinned=3)
    assert reader.take(event(2)) is not None
    for label in ("2", "default", "receiving:4"):
        with pytest.raises(RemoteError) as refused:
            reader.take(event(4, label=label))
        assert refused.value.code == STALE
    salvaged = reader.salvaged()
    assert salvaged is not None and salvaged.versions == [(3, 2)]


def test_tokens_that_lived_through_an_update_are_worth_nothing_without_their_end() -> None:
    reader = SegmentReader(pinned=3)
    reader.take(event(2))
    reader.take(event(4, label="4"))
    assert reader.salvaged() is None


def test_the_end_decides_about_versions() -> None:
    reader = SegmentReader(pinned=3)
    reader.take(event(2))
    spans = [{"version": "3", "start": 0, "end": 3}, {"version": "4+0123abcd", "start": 3, "end": 5}]
    reader.take(event(5, label="4+0123abcd", finish_reason={"type": "length"}, weight_versions=spans))
    assert reader.finished is not None and reader.finished.versions == [(3, 3), (4, 2)]


@pytest.mark.parametrize(
    "bad",
    [
        event(1),
        event(3, total=9),
        {"meta_info": {}},
        {"error": {"message": "queue full", "code": 503}},
        event(3, finish_reason={"type": "abort", "status_code": 503, "message": "no room"}),
        event(3, finish_reason={"type": "stop", "matched": "NaN happened"}),
        event(3, finish_reason={"type": "odd"}),
    ],
)
def test_an_event_that_is_refused_leaves_what_was_before(bad: dict[str, Any]) -> None:
    reader = SegmentReader(pinned=3)
    reader.take(event(2))
    with pytest.raises(RemoteError):
        reader.take(bad)
    salvaged = reader.salvaged()
    assert salvaged is not None and salvaged.ids == [0, 1]


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=6), incremental=st.booleans())
def test_pieces_are_the_output_whatever_the_events(cuts: list[int], incremental: bool) -> None:
    reader, heard, sent = SegmentReader(pinned=0), list[int](), 0
    for n in [*sorted(cuts), 12]:
        tokens = list(range(sent if incremental else 0, n))
        entries = [[logprob_of(token), token, None] for token in tokens]
        piece = reader.take({"meta_info": {"output_token_logprobs": entries, "completion_tokens": n}})
        heard += piece.ids if piece else []
        sent = n
    assert heard == list(range(12))


@settings(deadline=None)
@given(data=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5)), max_size=5), size=st.integers(1, 40), crlf=st.booleans())
def test_events_survive_any_chunking(data: list[dict[str, str]], size: int, crlf: bool) -> None:
    end = b"\r\n" if crlf else b"\n"
    raw = b"".join(b"data: " + orjson.dumps(item) + end + end for item in data) + b": a comment" + end + b"data: [DONE]" + end + end

    async def read() -> list[dict[str, str]]:
        async def chunks() -> Any:
            for at in range(0, len(raw), size):
                yield raw[at : at + size]

        return [orjson.loads(item) async for item in event_data(chunks())]

    assert asyncio.run(read()) == data
