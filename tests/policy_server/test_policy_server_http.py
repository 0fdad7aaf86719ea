"""SGLang's HTTP surface, over real HTTP."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from policy_harness import CONFIG, ids, make_model, save_model
from policy_http import make_config, serving, wait_until

from services.common.app import ADMIN_KEY_ENV
from services.common.nn.qwen3 import save_weights
from services.policy_server.scheduler import Scheduler
from services.policy_server.settings import EngineSettings

PROMPT = ids(1, 30)
LONG = 200
"""New tokens of a request that is still running when the test acts on it."""


def body(n: int = 6, prompt: list[int] = PROMPT, **sampling: Any) -> dict[str, Any]:
    return {
        "input_ids": prompt,
        "sampling_params": {"temperature": 1.0, "max_new_tokens": n, "sampling_seed": 7, "ignore_eos": True, **sampling},
        "return_logprob": True,
    }


def generate(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/generate", json={**body(), **fields})
    assert response.status_code == 200, response.text
    return response.json()


def load(client: httpx.Client) -> dict[str, Any]:
    return client.get("/server_info").json()["internal_states"][0]


def wait_for_tokens(client: httpx.Client, more_than: int = 8) -> None:
    before = load(client)["generated_tokens"]
    wait_until(lambda: load(client)["generated_tokens"] > before + more_than, "no tokens are generated")


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def long_request(client: httpx.Client, pool: ThreadPoolExecutor, **fields: Any) -> "Future[dict[str, Any]]":
    """A request that is running, with some tokens, when this returns."""
    future = pool.submit(generate, client, **{**body(LONG), **fields})
    wait_for_tokens(client)
    return future


def test_generate_answers_in_sglangs_shape(client: httpx.Client) -> None:
    answer = generate(client, rid="abc")
    meta = answer["meta_info"]
    assert answer["text"] == "" and len(answer["output_ids"]) == 6
    assert [item[1:] for item in meta["output_token_logprobs"]] == [[token, None] for token in answer["output_ids"]]
    assert all(item[0] <= 0 for item in meta["output_token_logprobs"])
    assert meta["id"] == "abc" and meta["finish_reason"] == {"type": "length", "length": 6}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (30, 6, 0)
    assert meta["weight_version"] == "0" and meta["weight_versions"] == [{"version": "0", "start": 0, "end": 6}]
    assert meta["e2e_latency"] > 0
    again = generate(client)
    assert again["output_ids"] == answer["output_ids"] and again["meta_info"]["cached_tokens"] == 29
    stopped = generate(client, **body(stop_token_ids=[answer["output_ids"][2]]))
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": answer["output_ids"][2]}
    assert "output_token_logprobs" not in generate(client, return_logprob=False)["meta_info"]


def test_information_routes(client: httpx.Client, models: dict[str, Path]) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/health_generate").status_code == 200
    info = client.get("/model_info").json()
    assert info["model_path"] == str(models["0"]) and info["weight_version"] == "0" and info["is_generation"] is True
    generate(client)
    assert load(client)["generated_tokens"] == 7
    metrics = client.get("/metrics").text
    assert "frontdesk_policy_server_generated_tokens_total 7.0" in metrics
    assert "frontdesk_policy_server_running_requests 0.0" in metrics


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": None}, "input_ids"),
        ({"input_ids": [[1, 2], [3, 4]]}, "input_ids"),
        ({"input_ids": ["a"]}, "input_ids"),
        ({"input_ids": [1, 97]}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"input_ids": [2**40]}, "input_ids"),
        ({"input_ids": ids(1, 1020)}, "context"),
        ({"sampling_params": {"n": 2}}, "sampling_params.n"),
        ({"sampling_params": {"temperatur": 2}}, "sampling_params.temperatur"),
        ({"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"sampling_params": {"top_p": "high"}}, "sampling_params.top_p"),
        ({"sampling_params": {"max_new_tokens": 0}}, "sampling_params.max_new_tokens"),
        ({"sampling_params": {"stop_token_ids": [True]}}, "sampling_params.stop_token_ids"),
        ({"sampling_params": []}, None),
        ({"sampling_params": [1]}, "sampling_params"),
        ({"sampling_params": {"min_p": 2}}, "sampling_params.min_p"),
        ({"sampling_params": {"stop": [3]}}, "sampling_params.stop"),
        ({"sampling_params": {"stop": ["x"]}}, "tokenizer.json"),
        ({"sampling_params": {"frequency_penalty": 0.5}}, "sampling_params.frequency_penalty"),
        ({"sampling_params": {"json_schema": "{}"}}, "sampling_params.json_schema"),
        ({"top_logprobs_num": 2}, "top_logprobs_num"),
        ({"rid": 3}, "rid"),
    ],
)
def test_bad_requests_name_the_field(client: httpx.Client, change: dict[str, Any], named: str | None) -> None:
    response = client.post("/generate", json={**body(), **change})
    if named is None:
        assert response.status_code == 200
        return
    assert response.status_code == 400 and named in response.json()["detail"]


def test_body_that_is_not_json(client: httpx.Client) -> None:
    assert client.post("/generate", content=b"{").status_code == 400
    assert client.post("/generate", content=b"[]").status_code == 400


def test_context_error_has_its_code(client: httpx.Client) -> None:
    response = client.post("/generate", json=body(prompt=ids(1, 1020)))
    assert response.json()["code"] == "context_length_exceeded"


def test_pause_abort_returns_partial_output(client: httpx.Client, background: ThreadPoolExecutor) -> None:
    running = long_request(client, background)
    assert client.post("/pause_generation", json={"mode": "abort"}).status_code == 200
    answer = running.result(20)
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(answer["output_ids"]) < LONG
    waiting = background.submit(generate, client)
    wait_until(lambda: load(client)["queued"] == 1, "a request during the pause should wait")
    assert client.post("/continue_generation", json={}).status_code == 200
    assert len(waiting.result(20)["output_ids"]) == 6
    # The rest, asked for as the proxy does, continues the same random stream.
    rest = generate(client, **body(5, PROMPT + answer["output_ids"]))
    whole = generate(client, **body(len(answer["output_ids"]) + 5))
    assert whole["output_ids"] == answer["output_ids"] + rest["output_ids"]


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_pause_that_keeps_requests(client: httpx.Client, background: ThreadPoolExecutor, mode: str) -> None:
    running = long_request(client, background)
    client.post("/pause_generation", json={"mode": mode})
    before = load(client)
    assert (before["running"], before["queued"]) == ((0, 1) if mode == "retract" else (1, 0))
    assert client.post("/flush_cache").status_code == (200 if mode == "retract" else 400)
    time.sleep(0.05)
    assert load(client)["generated_tokens"] == before["generated_tokens"] and not running.done()
    client.post("/continue_generation", json={})
    assert len(running.result(20)["output_ids"]) == LONG
    assert generate(client, **body(LONG))["output_ids"] == running.result()["output_ids"]


def test_unknown_pause_mode(client: httpx.Client) -> None:
    assert client.post("/pause_generation", json={"mode": "later"}).status_code == 422


@pytest.mark.parametrize("pause", [None, "retract", "in_place"])
def test_weight_update_in_mid_generation(
    client: httpx.Client, background: ThreadPoolExecutor, models: dict[str, Path], pause: str | None
) -> None:
    running = long_request(client, background)
    if pause:
        client.post("/pause_generation", json={"mode": pause})
    reply = client.post("/update_weights_from_disk", json={"model_path": str(models["1"]), "weight_version": "1"})
    assert reply.status_code == 200 and reply.json()["success"] is True
    info = client.get("/model_info").json()
    assert (info["weight_version"], info["model_path"]) == ("1", str(models["1"]))
    if pause:
        client.post("/continue_generation", json={})
    answer = running.result(30)
    spans = answer["meta_info"]["weight_versions"]
    cut = spans[0]["end"]
    assert 0 < cut < LONG
    assert spans == [{"version": "0", "start": 0, "end": cut}, {"version": "1", "start": cut, "end": LONG}]
    assert answer["meta_info"]["weight_version"] == "1"
    # What follows the cut is what the new policy says to prompt and partial output.
    fresh = generate(client, **body(LONG - cut, PROMPT + answer["output_ids"][:cut]))
    assert fresh["output_ids"] == answer["output_ids"][cut:]
    assert fresh["meta_info"]["output_token_logprobs"][0][0] == pytest.approx(
        answer["meta_info"]["output_token_logprobs"][cut][0], abs=1e-4
    )


def test_weight_update_that_aborts(client: httpx.Client, background: ThreadPoolExecutor, models: dict[str, Path]) -> None:
    running = long_request(client, background)
    update = {"model_path": str(models["1"]), "weight_version": "1", "abort_all_requests": True}
    assert client.post("/update_weights_from_disk", json=update).json()["success"]
    meta = running.result(20)["meta_info"]
    assert meta["finish_reason"]["type"] == "abort"
    assert [span["version"] for span in meta["weight_versions"]] == ["0"]


def test_failed_weight_update_leaves_the_old_weights(client: httpx.Client, background: ThreadPoolExecutor, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = save_model(tmp_path / "cut", 5)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    diverged = save_model(tmp_path / "diverged", 5)
    broken = make_model(5)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    save_weights(broken, diverged)
    other = save_model(tmp_path / "other", 5)
    (other / "config.json").write_text((other / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    running = long_request(client, background)
    for folder in (tmp_path / "absent", empty, cut, diverged, other):
        reply = client.post("/update_weights_from_disk", json={"model_path": str(folder), "weight_version": "9"})
        assert reply.status_code == 400
        assert reply.json()["success"] is False and str(folder) in reply.json()["message"]
    answer = running.result(30)
    assert len(answer["output_ids"]) == LONG
    assert answer["meta_info"]["weight_versions"] == [{"version": "0", "start": 0, "end": LONG}]


def test_abort_request(client: httpx.Client, background: ThreadPoolExecutor) -> None:
    first = long_request(client, background, rid="first")
    second = background.submit(generate, client, **{**body(LONG), "rid": "second"})
    wait_until(lambda: load(client)["running"] == 2, "both should run")
    assert client.post("/abort_request", json={"rid": "first"}).json() == {"aborted": 1}
    assert first.result(20)["meta_info"]["finish_reason"] == {"type": "abort", "message": "aborted by request"}
    assert client.post("/abort_request", json={"rid": ""}).json() == {"aborted": 0}
    assert client.post("/abort_request", json={"abort_all": True}).json() == {"aborted": 1}
    assert second.result(20)["meta_info"]["finish_reason"]["type"] == "abort"


def test_same_rid_twice_in_flight(client: httpx.Client, background: ThreadPoolExecutor) -> None:
    running = long_request(client, background, rid="same")
    assert client.post("/generate", json={**body(), "rid": "same"}).status_code == 400
    client.post("/abort_request", json={"rid": "same"})
    running.result(20)


def test_disconnect_frees_the_slot(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=body(LONG), timeout=httpx.Timeout(10, read=0.1))
    wait_until(lambda: load(client)["aborted"] == 1, "the request should be aborted")
    assert load(client)["running"] == 0 and load(client)["generated_tokens"] < LONG


def test_bounded_queue(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: ThreadPoolExecutor) -> None:
    settings = EngineSettings(max_running_requests=2, max_queued_requests=3)
    monkeypatch.setattr(EngineSettings, "from_config", lambda _: settings)
    with serving(make_config(models["0"], tmp_path)) as url, httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200, "the server did not become ready")
        client.post("/pause_generation", json={})
        pending = [background.submit(generate, client) for _ in range(5)]
        wait_until(lambda: load(client)["queued"] == 5, "all should wait")
        refused = client.post("/generate", json=body())
        assert refused.status_code == 503 and refused.json()["code"] == "queue_full" and refused.headers["retry-after"]
        client.post("/continue_generation", json={})
        assert all(len(future.result(20)["output_ids"]) == 6 for future in pending)


def test_admin_routes_need_the_key(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_KEY_ENV, "a-long-enough-secret")
    for path in ("/pause_generation", "/continue_generation", "/update_weights_from_disk", "/abort_request", "/flush_cache"):
        assert client.post(path, json={}).status_code == 401
        assert client.post(path, json={}, headers={"Authorization": "Bearer wrong"}).status_code == 403
    assert client.post("/flush_cache", headers={"Authorization": "Bearer a-long-enough-secret"}).status_code == 200
    generate(client)


def test_waits_for_its_model_folder_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with serving(make_config(folder, tmp_path)) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/healthz").status_code == 200 and client.get("/metrics").status_code == 200
        not_ready = client.get("/readyz")
        assert not_ready.status_code == 503 and str(folder) in not_ready.json()["checks"]["policy"]
        refused = client.post("/generate", json=body())
        assert refused.status_code == 503 and refused.json()["code"] == "not_loaded"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        wait_until(lambda: "model_type" in client.get("/readyz").json()["checks"]["policy"], "the reason should change")
        save_weights(make_model(0), folder)
        wait_until(lambda: client.get("/readyz").status_code == 200, "the server did not become ready")
        assert client.get("/health_generate").status_code == 200
        assert client.get("/model_info").json()["vocab_size"] == CONFIG.vocab_size


def test_a_step_that_fails_fails_its_requests_only(
    client: httpx.Client, background: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()
    real = Scheduler.step

    def step(self: Scheduler) -> None:
        if broken.is_set() and not self.idle:
            broken.clear()
            raise RuntimeError("out of memory")
        real(self)

    monkeypatch.setattr(Scheduler, "step", step)
    running = background.submit(client.post, "/generate", json=body(LONG))
    wait_for_tokens(client)
    broken.set()
    assert running.result(20).status_code == 500
    assert len(generate(client)["output_ids"]) == 6
