"""Streamed answers, stop strings, load figures: what a proxy in front of the server uses beyond whole answers."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from policy_harness import ids
from policy_http import wait_until
from test_policy_server_http import LONG, PROMPT, body, generate, load, long_request
from tokenizers import Tokenizer, decoders, models

from services.policy_server.stops import StopStrings


def events(client: httpx.Client, **fields: Any) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer, up to and without ``[DONE]``."""
    with client.stream("POST", "/generate", json={**body(), "stream": True, **fields}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return
            if line:
                yield json.loads(line.removeprefix("data: "))
    raise AssertionError("no [DONE]")


def test_a_stream_grows_into_the_whole_answer(client: httpx.Client) -> None:
    whole = generate(client, **body(40))
    seen = list(events(client, **body(40)))
    for before, after in pairwise(seen):
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        assert before["meta_info"]["finish_reason"] is None and "weight_versions" not in before["meta_info"]
        assert before["meta_info"]["completion_tokens"] == len(before["meta_info"]["output_token_logprobs"]) == len(before["output_ids"])
        assert before["meta_info"]["weight_version"] == "0"
    assert seen[-1]["output_ids"] == whole["output_ids"]
    assert seen[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]
    assert seen[-1]["meta_info"]["weight_versions"] == whole["meta_info"]["weight_versions"]
    assert [entry[1] for entry in seen[-1]["meta_info"]["output_token_logprobs"]] == whole["output_ids"]


def test_what_is_refused_is_refused_before_the_stream(client: httpx.Client) -> None:
    refused = client.post("/generate", json={**body(prompt=ids(1, 1020)), "stream": True})
    assert refused.status_code == 400 and refused.json()["code"] == "context_length_exceeded"


def test_an_abort_ends_a_stream_with_what_there_is(client: httpx.Client) -> None:
    seen: list[dict[str, Any]] = []
    for event in events(client, **body(LONG), rid="s"):
        if not seen:
            assert client.post("/pause_generation", json={"mode": "abort"}).status_code == 200
        seen.append(event)
    client.post("/continue_generation", json={})
    assert seen[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(seen[-1]["output_ids"]) < LONG


def test_a_client_that_leaves_its_stream_frees_the_slot(client: httpx.Client) -> None:
    stream = events(client, **body(LONG))
    next(stream)
    stream.close()
    wait_until(lambda: load(client)["running"] == 0, "the slot should be free")
    assert load(client)["aborted"] == 1


def test_load_figures_and_readiness(client: httpx.Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = long_request(client, pool)
        (rank,) = client.get("/v1/loads").json()["loads"]
        assert (rank["num_running_reqs"], rank["num_waiting_reqs"]) == (1, 0) and 0 < rank["token_usage"] < 1
        assert client.get("/ready").status_code == 200
        client.post("/pause_generation", json={"mode": "abort"})
        assert client.get("/ready").status_code == 503
        client.post("/continue_generation", json={})
        running.result(20)


def test_min_p_leaves_only_the_likely(client: httpx.Client) -> None:
    greedy = generate(client, **body(20, temperature=0.0))
    assert generate(client, **body(20, min_p=1.0))["output_ids"] == greedy["output_ids"]


@pytest.fixture
def letters(tmp_path: Path) -> StopStrings:
    """Token n is the letter n."""
    vocabulary = {chr(ord("a") + n): n for n in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return StopStrings(str(tmp_path))


def test_a_stop_string_is_seen_when_its_last_token_comes(letters: StopStrings) -> None:
    match = letters.matcher(("cde", "z"))
    output = [0, 1, 2, 3, 4]
    assert [match(output[:n]) for n in range(1, 6)] == [None, None, None, None, "cde"]
    assert match([25]) == "z"


def test_a_stop_string_ends_a_generation(client: httpx.Client, models: dict[str, Path]) -> None:
    vocabulary = {f"<{n}>": n for n in range(97)}
    tokenizer = Tokenizer.from_str(
        json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<0>"}, "decoder": {"type": "Fuse"}})
    )
    file = models["0"] / "tokenizer.json"
    tokenizer.save(str(file))
    try:
        free = generate(client, **body(6, PROMPT))["output_ids"]
        wanted = f"<{free[2]}><{free[3]}>"
        stopped = generate(client, **body(6, PROMPT, stop=[wanted]))
        assert stopped["output_ids"] == free[:4]
        assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": wanted}
    finally:
        file.unlink()
