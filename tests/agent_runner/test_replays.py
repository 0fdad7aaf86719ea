"""Replaying trajectories: over HTTP and by command, equal and with every kind of difference, refused, relived."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runner_fakes import Json, config_for
from runner_stack import Stack, playing

from services.agent_runner import cli
from services.agent_runner.domains import TaskSpec
from services.common.config import ExperimentConfig, to_yaml


def replay(stack: Stack, mode: str, trajectory: Json, **more: Any) -> Json:
    answer = stack.http.post("/v1/replays", json={"mode": mode, "trajectory": trajectory, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def solved(stack: Stack, small: list[TaskSpec]) -> Json:
    """A solved telecom episode with a user."""
    stack.proxy.policy = playing(small[0], solo=False)
    trajectory = stack.play(task_id=small[0].task_id, solo_mode=False)
    assert trajectory["reward"] == 1.0
    return trajectory


def test_what_was_recorded_happens_again(stack: Stack, solved: Json):
    report = replay(stack, "reexecute", solved)
    assert report["equal"]
    assert report["n_results"] == sum(message["role"] == "tool" for message in solved["messages"]) > 0
    assert report["end_state"] == {"expected": solved["end_state"], "got": solved["end_state"], "equal": True}
    assert report["reward"] == {"expected": 1.0, "got": 1.0, "equal": True}
    assert report["reward_info"]["checks"] == solved["reward_info"]["checks"]
    by_id = stack.http.post("/v1/replays", json={"mode": "reexecute", "episode_id": solved["episode_id"]}).json()
    assert by_id == report


def test_the_first_difference_is_named(stack: Stack, solved: Json):
    results = [index for index, message in enumerate(solved["messages"]) if message["role"] == "tool"]
    for index in results[1:3]:
        solved["messages"][index]["content"] = "tampered"
    report = replay(stack, "reexecute", solved)
    assert (report["equal"], report["n_differences"]) == (False, 2)
    first = report["first_difference"]
    assert first["index"] == results[1]
    assert first["expected"] == {"content": "tampered", "error": False}
    assert first["got"]["content"] != "tampered"
    agents_before = sum(message["role"] == "assistant" for message in solved["messages"][1 : results[1]])
    assert first["turn"] == agents_before - 1
    assert report["end_state"]["equal"]


def test_another_end_state_and_another_reward_are_differences(stack: Stack, solved: Json):
    lost = solved | {"messages": [solved["messages"][0], solved["messages"][-1]]}
    report = replay(stack, "reexecute", lost)
    assert not report["equal"]
    assert not report["end_state"]["equal"]
    assert report["reward"] == {"expected": 1.0, "got": 0.0, "equal": False}


def test_truncated_and_failed_episodes_can_be_made_again_too(stack: Stack, small: list[TaskSpec]):
    stack.proxy.policy = playing(small[0])
    cut = stack.play(task_id=small[0].task_id, max_steps=2)
    assert cut["termination_reason"] == "max_steps"
    assert replay(stack, "reexecute", cut)["reward"] == {"expected": 0.0, "got": 0.0, "equal": True}
    failed = cut | {"status": "failed", "reward": None, "failure": {"who": "infra", "why": "gone"}, "reward_info": None}
    failed |= {"termination_reason": "failed_infra", "turn_rewards": []}
    report = replay(stack, "reexecute", failed)
    assert (report["equal"], report["reward"]) == (True, None)
    refused = stack.http.post("/v1/replays", json={"mode": "rescore", "trajectory": failed})
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_score")


def test_a_reward_is_computed_again(stack: Stack, solved: Json):
    assert replay(stack, "rescore", solved)["reward"] == {"expected": 1.0, "got": 1.0, "equal": True}
    wrong = replay(stack, "rescore", solved | {"reward": 0.0})
    assert (wrong["equal"], wrong["reward"]["got"]) == (False, 1.0)


@pytest.mark.parametrize(
    ("stamp", "code", "remedy"),
    [
        ({"digest": "0" * 64}, "other_task_data", "TAU2_DATA_DIR"),
        ({"source": "inspect-evals 0.1.0"}, "other_source", "econfig.backend"),
    ],
)
def test_other_data_is_refused_with_a_remedy(stack: Stack, solved: Json, stamp: Json, code: str, remedy: str):
    other = solved | {"stamp": solved["stamp"] | stamp}
    answer = stack.http.post("/v1/replays", json={"mode": "reexecute", "trajectory": other})
    assert (answer.status_code, answer.json()["code"]) == (409, code)
    assert remedy in answer.json()["detail"]
    if code == "other_source":
        assert replay(stack, "reexecute", other, any_source=True)["equal"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"mode": "relive"}, 422, "turn"),
        ({"turn": 1}, 422, "turn"),
        ({"seed": 1}, 422, "seed"),
        ({"trajectory": None}, 422, "episode_id"),
        ({"trajectory": None, "episode_id": "nope"}, 404, "nope"),
        ({"mode": "relive", "turn": 99}, 400, "turns 0 to"),
    ],
)
def test_requests_that_make_no_sense_are_refused(stack: Stack, solved: Json, change: Json, status: int, words: str):
    answer = stack.http.post("/v1/replays", json={"mode": "reexecute", "trajectory": solved} | change)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_an_episode_is_continued_live_from_a_turn(stack: Stack, solved: Json, small: list[TaskSpec]):
    turn = solved["n_turns"] - 1
    stack.proxy.policy = lambda _sid, _body: {"role": "assistant", "content": "Something else."}
    body = {"mode": "relive", "episode_id": solved["episode_id"], "turn": turn, "seed": 7, "max_steps": 60}
    lived = stack.http.post("/v1/replays", params={"wait": "true"}, json=body).json()
    assert lived["episode_id"] != solved["episode_id"]
    assert lived["lineage"] == {"episode_id": solved["episode_id"], "attempt": 1, "turn": turn}
    assert lived["failure"] is None
    agents = [index for index, message in enumerate(solved["messages"]) if message["role"] == "assistant"]
    branch = agents[1 + turn]
    assert lived["messages"][:branch] == solved["messages"][:branch]
    assert lived["messages"][branch]["content"] == "Something else."
    assert (lived["seed"], lived["policy_versions"]) == (7, [3])
    assert stack.store.trajectories[lived["episode_id"]]["lineage"] == lived["lineage"]
    calls = stack.proxy.calls[lived["session_id"]]
    assert len(calls) == lived["n_turns"]
    assert replay(stack, "reexecute", lived)["equal"]


@pytest.fixture
def files(stack: Stack, solved: Json, tmp_path: Path) -> tuple[Path, Path]:
    """A config and a trajectory as files."""
    config: ExperimentConfig = stack.app.state.config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "trajectory.json").write_text(json.dumps(solved))
    return tmp_path / "config.yaml", tmp_path / "trajectory.json"


def test_the_command_says_by_its_exit_status_what_it_found(
    stack: Stack, solved: Json, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    config, trajectory = map(str, files)
    assert cli.run("replay", [trajectory, "--config", config]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["equal"] is True
    assert err.startswith("EQUAL: ")
    assert cli.run("replay", [solved["episode_id"], "--mode", "rescore", "--config", config]) == 0
    solved["messages"][-2]["content"] = solved["messages"][-2]["content"] or ""
    solved["end_state"] = ["x", "y"]
    files[1].write_text(json.dumps(solved))
    assert cli.run("replay", [trajectory, "--config", config, "econfig.max_errors=9"]) == 1
    assert "the end state is not" in capsys.readouterr().err
    for wrong in (["nope"], ["nope.json"], [config]):
        assert cli.run("replay", [*wrong, "--config", config]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_command_relives_through_the_service(stack: Stack, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    stack.proxy.policy = lambda _sid, _body: {"role": "assistant", "content": "Something else."}
    port = stack.http.base_url.port
    arguments = [str(files[1]), "--mode", "relive", "--turn", "1", "--config", str(files[0]), f"services.agent_runner.port={port}"]
    assert cli.run("replay", arguments) == 0
    assert json.loads(capsys.readouterr().out)["lineage"]["turn"] == 1


def test_without_any_service_a_process_of_its_own_replays_a_file(solved: Json, tmp_path: Path):
    nowhere = config_for(store="http://127.0.0.1:1", proxy="http://127.0.0.1:1", users="http://127.0.0.1:1")
    (tmp_path / "config.yaml").write_text(to_yaml(nowhere))
    (tmp_path / "trajectory.json").write_text(json.dumps(solved))
    command = [sys.executable, "-m", "services.agent_runner", "replay", str(tmp_path / "trajectory.json")]
    done = subprocess.run([*command, "--config", str(tmp_path / "config.yaml")], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, json.loads(done.stdout)["equal"]) == (0, True), done.stderr


def test_results_are_written_in_the_benchmarks_format(
    stack: Stack, solved: Json, small: list[TaskSpec], tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    stack.proxy.policy = playing(small[1], solo=False)
    stack.play(task_id=small[1].task_id, solo_mode=False, max_steps=3)
    out = tmp_path / "results.json"
    arguments = ["--config", str(files[0]), "--no-solo", "--out", str(out)]
    assert cli.run("results", arguments) == 0
    results = json.loads(out.read_text())
    assert sorted(one["reward_info"]["reward"] for one in results["simulations"]) == [0.0, 1.0]
    assert results["info"]["environment_info"]["domain_name"] == "telecom"
    said = capsys.readouterr().out
    assert "2 episodes of 2 tasks" in said
    assert "mean reward 0.500" in said
    assert "do-nothing floor 0.000" in said
    assert "pass^1 0.500" in said
    assert cli.run("results", ["--config", str(files[0]), "--solo", "--out", str(out)]) == 2


def test_tasks_are_listed_by_command(files: tuple[Path, Path], small: list[TaskSpec], capsys: pytest.CaptureFixture[str]):
    config = str(files[0])
    assert cli.run("tasks", ["--config", config, "--domain", "telecom", "--split", "small"]) == 0
    assert "20 tasks of telecom/small, do-nothing floor 0.000" in capsys.readouterr().out
    assert cli.run("tasks", ["--config", config, "--domain", "telecom", "--task-id", small[0].task_id]) == 0
    assert json.loads(capsys.readouterr().out) == small[0].raw
    assert cli.run("tasks", ["--config", config]) == 0
    assert "mock: base 9" in capsys.readouterr().out
    assert cli.run("tasks", ["--config", config, "--domain", "hotels"]) == 2
