"""Weights from a trainer's memory: the test is rank 0 of a process group that a real SGLang server joins, and broadcasts to it."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from real_models import QUESTION, SYSTEM
from real_server import free_port, wait_until
from real_stack import MakeStack, Stack, running
from safetensors.torch import load_file
from sglang.srt.utils import init_custom_process_group
from test_real_weight_updates import ATTEMPTS, LONG, assert_proven

from services.common.wire.calls import rows_of


@contextmanager
def joined(stack: Stack) -> Iterator[tuple[str, Any]]:
    """The group of this process and the servers behind the proxy: its name and its handle here."""
    name, port = f"weights-{uuid.uuid4().hex[:8]}", free_port()
    plan = stack.http.get("/v1/admin/weight_group").json()
    assert (plan["state"], plan["world_size"]) == ("absent", 2)
    body = {"master_address": "127.0.0.1", "master_port": port, "world_size": 2, "group_name": name, "backend": "gloo", "deadline_s": 60}
    with ThreadPoolExecutor(1) as pool:
        forming = pool.submit(stack.http.post, "/v1/admin/weight_group", json=body)
        group = init_custom_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=0, group_name=name)
        formed = forming.result()
    assert formed.status_code == 200, formed.text
    assert formed.json()["state"] == "ready"
    try:
        yield name, group
    finally:
        torch.distributed.destroy_process_group(group)


def broadcast(stack: Stack, group: tuple[str, Any], version: int, folder: Path, mode: str) -> None:
    """Publishes the weights of a folder over the group, in two buckets; the folder is only named."""
    name, handle = group
    weights = list(load_file(folder / "model.safetensors").items())
    half = len(weights) // 2
    buckets = [
        {
            "names": [each for each, _ in part],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in part],
            "shapes": [list(tensor.shape) for _, tensor in part],
        }
        for part in (weights[:half], weights[half:])
    ]
    with ThreadPoolExecutor(1) as pool:
        posting = pool.submit(stack.post_weights, version, folder, mode=mode, method="distributed", group_name=name, buckets=buckets)
        for _, tensor in weights:
            torch.distributed.broadcast(tensor, src=0, group=handle)
        outcomes = posting.result()["servers"]
    assert [outcome["ok"] for outcome in outcomes] == [True], outcomes


@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_a_trainer_broadcasts_its_weights(
    make_stack: MakeStack, sglang: str, random_policies: list[Path], mode: str, figure: Callable[[str, str], None]
) -> None:
    stack = make_stack(random_policies[0])
    from_disk = len(disk_updates(stack))
    n_mixed = n_tokens = 0
    with joined(stack) as group:
        for version in range(1, 1 + ATTEMPTS):
            folders = {each: random_policies[each % len(random_policies)] for each in (version - 1, version)}
            session = stack.open()
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(session.post, [SYSTEM, QUESTION], max_tokens=LONG, seed=version)
                wait_until(lambda call=call: running(sglang) or call.done(), 120, "the call at the server")
                broadcast(stack, group, version, folders[version], mode)
                call.result()
            session.post([SYSTEM, QUESTION], max_tokens=20, seed=version)
            rows = rows_of(session.records())
            for row in rows:
                assert_proven(row, folders, mode)
                n_tokens += row.n_output
            assert set(rows[1].versions.tolist()) == {version}
            n_mixed += len(set(rows[0].versions.tolist())) == 2
            if n_mixed:
                break
        assert n_mixed, "no call was in flight in any of the updates"
        assert stack.http.get("/v1/admin/weight_group").json()["state"] == "ready"
    assert len(disk_updates(stack)) == from_disk, "the server was to get its weights from the trainer alone"
    figure(f"weights broadcast in mode {mode}", f"{n_mixed} calls of two versions, {n_tokens} tokens proven by their logprobs")


def disk_updates(stack: Stack) -> list[str]:
    """What the proxy has asked the server to read from disk."""
    return [str(exchange.body["model_path"]) for exchange in stack.tap.exchanges if exchange.path == "/update_weights_from_disk"]
