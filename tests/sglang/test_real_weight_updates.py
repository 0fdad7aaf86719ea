"""New weights in the middle of generation: every token carries the version that SGLang says, and that its logprob proves."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_models import QUESTION, SYSTEM, hf_logprobs, hf_logprobs_on_old_keys
from real_server import wait_until
from real_stack import MakeStack, RealSession, Stack, ask, control, running

from services.common.wire.calls import CallRecord, Row, rows_of

TOLERANCE = 1e-5
UNLIKE = 0.01
"""Nats: a token's logprob under the wrong weights is at least this far off somewhere in a run of them."""
CALLS, LONG = 4, 300
ATTEMPTS = 4
"""A random policy may end its turns before the update comes; then the test plays again."""


def spans_of(stack: Stack, record: CallRecord) -> list[int]:
    """One version a token, from SGLang's own spans in the answers to this call's submissions."""
    versions: list[int] = []
    for exchange in stack.tap.generations(record.call_id):
        meta = exchange.meta
        covered = [int(span["version"]) for span in meta["weight_versions"] or () for _ in range(span["start"], span["end"])]
        assert len(covered) == len(meta["output_token_logprobs"])
        versions += covered
    return versions


def off(row: Row, truth: np.ndarray, mine: np.ndarray) -> float:
    """The largest difference of captured logprobs from the truth, of some of the tokens."""
    assert row.logprobs is not None
    return float(np.abs(row.logprobs - truth)[mine].max(initial=0.0))


def assert_proven(row: Row, weights: dict[int, Path], mode: str) -> None:
    """Each token has its logprob under the weights of its label, and not under the others."""
    ids, n_output = row.ids.tolist(), row.n_output
    for version, folder in weights.items():
        mine = row.versions == version
        if not mine.any():
            continue
        switched = mode == "in_place" and not mine.all() and version == max(weights)
        truth = hf_logprobs(folder, ids, n_output)
        if switched:
            # The last old token's keys are the first that the new weights compute: it was sampled, but not yet fed back.
            n_new = int(mine.sum())
            kept = hf_logprobs_on_old_keys(weights[min(weights)], folder, ids, len(ids) - n_new - 1, n_new)
            assert off(row, truth, mine) > UNLIKE, "old keys and values make no difference, so nothing was shown"
            truth = np.concatenate([truth[:-n_new], kept])
        assert off(row, truth, mine) < TOLERANCE, f"version {version} in mode {mode}"
        others = [other for other in weights.values() if other != folder]
        assert off(row, hf_logprobs(others[0], ids, n_output), mine) > UNLIKE


def update_in_mid_generation(stack: Stack, server: str, version: int, folder: Path, mode: str) -> list[RealSession]:
    """Long calls of several sessions, and an update once they are running."""
    sessions = [stack.open() for _ in range(CALLS)]
    with ThreadPoolExecutor(CALLS) as pool:
        calls = [
            pool.submit(session.post, [SYSTEM, QUESTION], max_tokens=LONG, seed=100 * version + index)
            for index, session in enumerate(sessions)
        ]
        wait_until(lambda: running(server) >= CALLS - 1 or all(call.done() for call in calls), 120, "calls at the server")
        time.sleep(0.5)
        stack.post_weights(version, folder, mode=mode)
        for call in calls:
            call.result()
    return sessions


@pytest.mark.parametrize("mode", ["abort", "wait", "retract", "in_place"])
def test_an_update_in_mid_generation(
    make_stack: MakeStack, sglang: str, random_policies: list[Path], mode: str, figure: Callable[[str, str], None]
) -> None:
    stack = make_stack(random_policies[0], pause_mode=mode)
    folders = {0: random_policies[0]}
    n_proven, n_mixed, n_calls = 0, 0, 0
    for version in range(1, 1 + ATTEMPTS):
        folders[version] = random_policies[version % len(random_policies)]
        for session in update_in_mid_generation(stack, sglang, version, folders[version], mode):
            [record] = session.records()
            [row] = rows_of([record])
            assert row.versions.tolist() == spans_of(stack, record)
            assert np.all(np.diff(row.versions) >= 0)
            assert_proven(row, {each: folders[each] for each in (version - 1, version)}, mode)
            n_calls, n_proven = n_calls + 1, n_proven + row.n_output
            n_mixed += len(set(row.versions.tolist())) == 2
        if n_mixed or mode == "wait":
            break
    assert n_mixed or mode == "wait", "no call was in flight in any of the updates"
    figure(f"update in mode {mode}", f"{n_calls} calls, {n_mixed} of two versions, {n_proven} tokens proven by their logprobs")


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_what_sglang_itself_does_in_each_mode(sglang: str, random_policies: list[Path], mode: str) -> None:
    """The facts that the proxy builds on, without the proxy."""
    old, new = random_policies[:2]
    control(sglang, "/update_weights_from_disk", model_path=str(old), weight_version="7", flush_cache=True)
    params = {"temperature": 1.0, "max_new_tokens": 400, "ignore_eos": True}
    body = {"input_ids": list(range(20, 60)), "sampling_params": params, "return_logprob": True, "rid": f"mode-{mode}"}
    answer: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: answer.update(ask(sglang, "POST", "/generate", **body).json()))
    thread.start()
    try:
        wait_until(lambda: running(sglang) >= 1, 60, "the request at the server")
        time.sleep(0.5)
        control(sglang, "/pause_generation", mode=mode)
        control(sglang, "/update_weights_from_disk", model_path=str(new), weight_version="8", flush_cache=mode != "in_place")
    finally:
        control(sglang, "/continue_generation")
        thread.join(120)
    meta = answer["meta_info"]
    spans = [(span["version"], span["start"], span["end"]) for span in meta["weight_versions"]]
    assert meta["finish_reason"]["type"] == ("abort" if mode == "abort" else "length")
    assert [version for version, _, _ in spans] == (["7"] if mode == "abort" else ["7", "8"])
    assert (spans[0][1], spans[-1][2]) == (0, len(meta["output_token_logprobs"]))
