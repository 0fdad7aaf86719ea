"""Files for people, reading them back, AReaL's jsonl, and the commands."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from store_helpers import StoreClient, make_call, make_group, make_request, make_trajectory, wait_until
from test_whole_trajectories import put_whole

from services.common.wire.calls import encode_call
from services.trajectory_store import dumper
from services.trajectory_store.cli import main
from services.trajectory_store.dumps import from_json, to_json, to_text
from services.trajectory_store.imports import areal_row


@pytest.fixture
def filled(store: StoreClient) -> StoreClient:
    """g1.0 scored with tokens, g1.1 failed, e1.0 an evaluation."""
    store.enqueue([*make_group("g1", 2), *make_group("e1", 1, kind="eval")])
    for lease in store.lease(limit=3):
        name = lease["request"]["episode_id"]
        if name == "g1.0":
            calls = [encode_call(make_call("s1", ordinal)) for ordinal in range(3)]
            put_whole(store, make_trajectory(lease["request"], session_id="s1"), calls, lease=lease["lease_id"])
        else:
            store.put(make_trajectory(lease["request"], who="policy" if name == "g1.1" else ""), lease["lease_id"])
    return store


def run(store: StoreClient, *arguments: str) -> int:
    return main([arguments[0], "--url", str(store.http.base_url), *arguments[1:]])


def test_a_dump_says_everything_and_reads_back(filled: StoreClient) -> None:
    trajectory = filled.get("g1.0")
    calls = [encode_call(make_call("s1", ordinal)) for ordinal in range(3)]
    data = to_json(trajectory, calls)
    assert from_json(data) == (trajectory, calls)
    readable = json.loads(data)
    assert readable["calls"][0]["output"] == [0, 1, 2]
    text = to_text(trajectory)
    assert "telecom/small task-1" in text
    assert "héllo" in text
    for broken, reason in ((b"{}", "dump_version"), (b'{"dump_version": 99}', "99 is newer"), (b"[1", "unexpected")):
        with pytest.raises(ValueError, match=reason):
            from_json(broken)


def test_export_and_import_are_inverse(
    filled: StoreClient, make_store: Callable[..., StoreClient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(filled, "export", "--trial", "store-tests/t0", "--to", str(tmp_path)) == 0
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == [
        "generated-eval/store-tests/t0/task-1-e1.0.json",
        "generated-eval/store-tests/t0/task-1-e1.0.txt",
        *(f"generated/store-tests/t0/task-1-g1.{number}.{ending}" for number in (0, 1) for ending in ("json", "txt")),
    ]
    names = [str(path) for path in tmp_path.rglob("*.json")]
    base = str(filled.http.base_url).rstrip("/") + "/t/copies/first"
    for outcome in ("3 stored", "3 duplicate"):
        assert main(["import", "--url", str(filled.http.base_url), "--trial", "copies/first", *names]) == 0
        assert outcome in capsys.readouterr().out
    copy = StoreClient(base)
    assert copy.get("g1.0") == filled.get("g1.0")
    assert copy.http.get(f"{base}/v1/sessions/s1/calls").content == filled.http.get("/v1/sessions/s1/calls").content
    copy.close()


def test_areals_rows_become_readable_trajectories(store: StoreClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "task_id": 7,
        "sample_idx": 2,
        "seqlen": 9,
        "prompt_len": 5,
        "head_version": 1,
        "tail_version": 2,
        "version_rle": [[-1, 5], [1, 2], [2, 2]],
        "reward": 0.5,
        "prompt": "What now?",
        "completion": "Restart the phone.",
        "original_reward": 1.0,
    }
    path = tmp_path / "eval-rollout" / "2" / "7.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row | {"sample_idx": 3, "segments": [{"role": "gen", "len": 3, "text": "hi"}]}))
    assert run(store, "import", str(path)) == 0
    assert run(store, "import", str(path)) == 0
    assert capsys.readouterr().out == "2 stored\n2 duplicate\n"
    [first, second] = store.call("GET", "/v1/trajectories")["items"]
    assert (first["reward"], first["kind"], first["policy_versions"], first["task"]["task_id"]) == (0.5, "eval", [1, 2], "7")
    assert store.get(first["episode_id"]).messages[1] == {"role": "assistant", "content": "Restart the phone."}
    assert store.get(second["episode_id"]).messages == [{"role": "assistant", "content": "hi"}]
    assert store.stats()["trajectories_in"] == 0, "imports are never delivered"
    path.write_text('{"task_id": 1}')
    assert run(store, "import", str(path)) == 2
    assert f"{path}:1: not a row of AReaL's dump" in capsys.readouterr().err
    with pytest.raises(KeyError):
        areal_row(b'{"task_id": 1}', path)


def test_list_show_drops_and_queue(filled: StoreClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(filled, "list", "--status", "failed") == 0
    assert capsys.readouterr().out == "g1.1  train  failed  -  v-  telecom/task-1\n"
    assert run(filled, "list", "--min-reward", "0.5", "--json") == 0
    assert [json.loads(line)["episode_id"] for line in capsys.readouterr().out.splitlines()] == ["e1.0", "g1.0"]
    assert run(filled, "list", "--limit", "1") == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert run(filled, "show", "g1.1") == 0
    assert "failure   policy: it broke" in capsys.readouterr().out
    assert run(filled, "show", "nobody") == 2
    assert "nobody" in capsys.readouterr().err
    batch = filled.lease_batch()
    filled.ack(batch, {"g1.1": "failed_policy"})
    assert run(filled, "drops") == 0
    assert capsys.readouterr().out == "1  failed_policy  such as g1.1\n"
    assert run(filled, "queue", "pause") == 0
    assert run(filled, "queue", "resume") == 0
    assert "paused: nothing" in capsys.readouterr().out
    assert run(filled, "queue", "stop") == 2


def test_the_audit_command_fails_where_the_sums_do_not_balance(filled: StoreClient) -> None:
    command = [sys.executable, "-m", "services.trajectory_store", "audit", "--url", str(filled.http.base_url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "train: in 2 = trained 0 + dropped 0 + waiting 2 + leased 0" in done.stdout
    assert done.stdout.endswith("balanced\n")


def test_dumps_are_written_as_trajectories_become_final(
    make_store: Callable[..., StoreClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumper, "IDLE_S", 0.05)
    monkeypatch.chdir(tmp_path)
    store = make_store(dump_to_file=True)
    store.put(make_trajectory(make_request("e1")))
    folder = tmp_path / "experiments" / "generated" / "store-tests" / "t0"
    wait_until(lambda: (folder / "task-1-e1.txt").exists(), what="the dump")
    assert from_json((folder / "task-1-e1.json").read_bytes())[0] == store.get("e1")
    store.put(make_trajectory(make_request("e2")))
    wait_until(lambda: (folder / "task-1-e2.txt").exists(), what="the next dump")
