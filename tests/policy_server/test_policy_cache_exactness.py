"""Whatever the cache shares, copies, moves, splits or drops, the tokens and log-probabilities are those of a pass without a cache."""

import dataclasses

import numpy as np
import pytest
from policy_harness import CONFIG, SMALL, Bench, ids

from services.policy_server.trunk import common_prefix

PREFIX = ids(1, 40)


def trunk_lengths(bench: Bench) -> list[int]:
    return sorted(len(segment.tokens) for segment in bench.scheduler.cache.trunk.segments())


def test_one_request_alone() -> None:
    bench = Bench()
    bench.submit(ids(1, 10))
    bench.finish()
    assert trunk_lengths(bench) == []


def test_one_token_prompt() -> None:
    bench = Bench()
    bench.submit([5])
    bench.finish()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_head_layouts(kv_heads: int) -> None:
    bench = Bench(config=dataclasses.replace(CONFIG, num_key_value_heads=kv_heads))
    for i in range(4):
        bench.submit(PREFIX + ids(10 + i, 5 + i), seed=i)
    bench.finish()


def test_shared_prefix_of_simultaneous_requests_is_computed_once() -> None:
    bench = Bench()
    for i in range(10):
        bench.submit([*PREFIX, i + 1, *ids(10 + i, 6)], seed=i)
    bench.finish()
    assert trunk_lengths(bench) == [40]
    assert bench.scheduler.totals.prefill_tokens == 40 + 10 * 7


def test_requests_that_share_more_than_the_trunk_copy_the_rest() -> None:
    bench = Bench(dataclasses.replace(SMALL, max_running_requests=6))
    ticket = ids(2, 10)
    bench.submit(PREFIX + ids(3, 3))
    bench.submit(PREFIX + ticket)
    bench.run(8)
    for seed in range(3):
        bench.submit(PREFIX + ticket, seed=seed)
    bench.finish()
    assert trunk_lengths(bench) == [40]
    # One token each: the last of a prompt is computed for its logits.
    assert bench.scheduler.totals.prefill_tokens == 40 + 3 + 10 + 3


def test_next_turns_of_a_session_compute_only_what_is_new() -> None:
    bench = Bench()
    conversation = ids(1, 12)
    for turn in range(5):
        result = bench.ask(conversation, seed=turn)
        assert result.cached_tokens == (0 if turn == 0 else len(conversation) - 6)
        conversation = conversation + result.output_ids + ids(50 + turn, 5)
    bench.finish()


def test_prompt_longer_than_a_tail_becomes_trunk_and_is_split_where_others_leave_it() -> None:
    bench = Bench()
    bench.ask(PREFIX + ids(2, 30))
    assert trunk_lengths(bench) == [69]
    result = bench.ask(PREFIX + ids(3, 30))
    assert result.cached_tokens == 40
    assert trunk_lengths(bench) == [29, 40]
    bench.finish()


def test_short_rest_of_a_split_goes_back_to_the_tail_it_came_from() -> None:
    bench = Bench()
    prefix = ids(1, 60)
    first = bench.ask(prefix + ids(2, 6))
    bench.ask(prefix + ids(3, 6))
    assert trunk_lengths(bench) == [60]
    again = bench.ask(prefix + ids(2, 6) + first.output_ids + [7])
    assert again.cached_tokens == 60 + 6 + 8 - 1
    bench.finish()


def test_split_below_running_sequences() -> None:
    bench = Bench()
    prefix = ids(1, 60)
    bench.submit(prefix + ids(2, 8), max_new_tokens=20)
    bench.run(9)
    assert bench.scheduler.active
    bench.submit(prefix[:30] + ids(3, 8), max_new_tokens=20)
    bench.submit(prefix + ids(4, 8), max_new_tokens=20)
    bench.finish()


def test_long_common_start_of_tails_becomes_trunk_without_computing() -> None:
    bench = Bench()
    shared = ids(1, 24)
    bench.ask(shared + ids(2, 4))
    assert trunk_lengths(bench) == []
    result = bench.ask(shared + ids(3, 4))
    assert result.cached_tokens == 24
    assert trunk_lengths(bench) == [24]
    bench.finish()


def test_tail_that_is_full_moves_into_a_segment_of_its_own() -> None:
    bench = Bench()
    result = bench.ask(ids(1, 30), max_new_tokens=100)
    assert len(result.output_ids) == 100
    assert trunk_lengths(bench) == [48, 48]
    following = bench.ask(ids(1, 30) + result.output_ids + ids(5, 4))
    assert following.cached_tokens >= 96
    bench.finish()


def test_trunk_stays_within_its_bound() -> None:
    bench = Bench()
    for i in range(12):
        bench.ask(ids(i, 70), seed=i)
    bench.finish()
    assert bench.scheduler.cache.trunk.tokens <= SMALL.max_trunk_tokens


def test_slots_are_reused_oldest_first() -> None:
    bench = Bench()
    kept = bench.ask(ids(0, 10))
    for i in range(1, 6):
        bench.ask(ids(i, 10), seed=i)
    assert bench.ask(ids(0, 10) + kept.output_ids + [3]).cached_tokens == 17
    for i in range(6, 12):
        bench.ask(ids(i, 10), seed=i)
    assert bench.ask(ids(0, 10) + kept.output_ids + [3]).cached_tokens == 0
    bench.finish()


def test_new_weights_never_see_old_keys() -> None:
    bench = Bench()
    for i in range(4):
        bench.submit(PREFIX + ids(10 + i, 5), seed=i, max_new_tokens=12)
    bench.run(12)
    produced = [len(s.output_ids) for s in bench.scheduler.active]
    assert any(produced)
    bench.update("1")
    bench.finish()
    assert any(len(result.weight_versions) == 2 for result in bench.results.values())
    assert trunk_lengths(bench)


def test_retracted_sequences_go_on_where_they_were() -> None:
    bench = Bench()
    for i in range(3):
        bench.submit(PREFIX + ids(10 + i, 5), seed=i, max_new_tokens=12)
    bench.run(10)
    bench.scheduler.pause("retract")
    assert not bench.scheduler.active and len(bench.scheduler.waiting) == 3
    computed = bench.scheduler.totals.prefill_tokens
    bench.scheduler.resume()
    bench.finish()
    # Each finds its own tail again; only its last token is computed anew.
    assert bench.scheduler.totals.prefill_tokens == computed + 3


def test_frozen_sequences_go_on_in_place() -> None:
    bench = Bench()
    bench.submit(ids(1, 10), max_new_tokens=12)
    bench.run(5)
    bench.scheduler.pause("in_place")
    bench.run(5)
    assert len(bench.scheduler.active[0].output_ids) == 5
    assert not bench.scheduler.flush()
    bench.scheduler.resume()
    bench.finish()


def test_abort_returns_what_there_is() -> None:
    bench = Bench()
    running = bench.submit(ids(1, 10), max_new_tokens=12)
    bench.run(5)
    waiting = bench.submit(ids(2, 10))
    assert bench.scheduler.abort(running, "why") == 1
    assert bench.scheduler.abort(waiting, "why") == 1
    assert bench.scheduler.abort("nobody", "why") == 0
    assert len(bench.results[running].output_ids) == 5
    assert bench.results[running].finish_reason.detail == {"message": "why"}
    assert bench.results[waiting].output_ids == []
    bench.finish()


def test_stop_token_is_reported_and_kept() -> None:
    bench = Bench()
    free = bench.ask(ids(1, 10), max_new_tokens=12)
    stop = free.output_ids[6]
    result = bench.ask(ids(1, 10), max_new_tokens=12, stop_token_ids=frozenset({stop}))
    assert result.output_ids == free.output_ids[: free.output_ids.index(stop) + 1]
    assert result.finish_reason.type == "stop" and result.finish_reason.detail == {"matched": stop}
    assert free.finish_reason.type == "length" and free.finish_reason.detail == {"length": 12}


def test_common_prefix() -> None:
    def prefix(a: list[int], b: list[int]) -> int:
        return common_prefix(np.array(a, np.int32), np.array(b, np.int32))

    assert prefix([], [1]) == 0
    assert prefix([2], [1]) == 0
    assert prefix([1, 2, 3], [1, 2]) == 2
    assert prefix([1, 2, 3], [1, 2, 4]) == 2
