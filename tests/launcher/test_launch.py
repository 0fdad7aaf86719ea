"""The whole launcher as a process, with stand-ins for the services: from the first check to ``results: PATH``, and every way out before."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_supervisor import exists

from services.launcher.cli import main
from services.launcher.ports import is_busy

Command = Callable[..., tuple[int, str, str]]
Start = Callable[..., "subprocess.Popen[str]"]
SCRIPT = Path(__file__).with_name("standin_train.py")


@pytest.fixture
def start(config_file: Path, overrides: list[str]) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*more: str, command: str = "train", **env: str) -> "subprocess.Popen[str]":
        clean = {key: value for key, value in os.environ.items() if key not in ("REDIS_URL", "FRONTDESK_ADMIN_KEY")}
        arguments = [sys.executable, str(SCRIPT), command, "--config", str(config_file), *overrides, *more]
        process = subprocess.Popen(arguments, env=clean | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def command(config_file: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command that ends before it starts anything, in this process: exit status, standard output, standard error."""
    monkeypatch.delenv("REDIS_URL", raising=False)

    def run(name: str, *more: str) -> tuple[int, str, str]:
        status = main([name, "--config", str(config_file), *overrides, *more])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def ports(overrides: list[str]) -> list[int]:
    return [int(item.rpartition("=")[2]) for item in overrides if "port=" in item]


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "e" / "t"


def wait_for(condition: Callable[[], bool], deadline_s: float = 40.0) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.05)


def services_of(trial: Path) -> list[int]:
    """Processes that run with this trial's config, or in its folder as Redis does."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and exists(int(entry.name)):
            try:
                command = (entry / "cmdline").read_bytes() + os.readlink(entry / "cwd").encode()
            except OSError:
                continue
            if str(trial).encode() in command:
                found.append(int(entry.name))
    return found


def test_run_ends_with_results_and_leaves_nothing_running(start: Start, trial: Path, ports: list[int]) -> None:
    out, err = (process := start()).communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == f"results: {trial / 'results.json'}"
    results = json.loads((trial / "results.json").read_text())
    assert results["reward_after"] == 0.6 and results["restarts"] == {} and results["rollout_rewards"] == [0.0, 0.2, 0.4]
    assert results["wall_s"] > results["trainer_wall_s"] == 1.0
    assert (trial / "rewards.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (trial / "logs").iterdir()} >= {"redis.log", "trainer.log", "model.log"}
    assert services_of(trial) == [] and not any(is_busy("127.0.0.1", port) for port in ports)

    again, _ = (process := start()).communicate(timeout=30)
    assert process.returncode == 0
    assert "is finished" in again and again.splitlines()[-1] == out.splitlines()[-1]
    assert json.loads((trial / "results.json").read_text()) == results


def test_interrupted_run_stops_everything_and_resumes(start: Start, trial: Path) -> None:
    process = start(STANDIN_STEP_S="0.5")
    wait_for((trial / "standin_step").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "resumes the trial" in err
    assert services_of(trial) == []

    out, err = (process := start()).communicate(timeout=60)
    assert process.returncode == 0, err
    assert "it is resumed" in out and "set-up" not in out
    assert json.loads((trial / "results.json").read_text())["first_step"] > 0


def test_killed_launcher_takes_everything_with_it(start: Start, trial: Path) -> None:
    process = start(STANDIN_STEP_S="5")
    wait_for(lambda: len(services_of(trial)) >= 7)
    process.kill()
    wait_for(lambda: services_of(trial) == [])


def test_failed_experiment_says_why(start: Start, trial: Path) -> None:
    out, err = (process := start(STANDIN_FAIL="1")).communicate(timeout=60)
    assert process.returncode == 1
    assert "the experiment failed: kl_ctl needs a reference model" in err and "trainer.log" in err
    assert "results:" not in out and services_of(trial) == []


def test_second_launcher_is_refused(start: Start, trial: Path, command: Command) -> None:
    first = start(STANDIN_STEP_S="5")
    wait_for((trial / "config.yaml").exists)
    status, _, err = command("train")
    assert status == 2 and f"another launcher (pid {first.pid})" in err


def test_busy_port_is_refused_with_holder_and_remedy(command: Command, trial: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        status, _, err = command("train", f"services.policy_proxy.port={port}")
    assert status == 2
    assert f"port {port} for policy_proxy is in use by pid {os.getpid()} (" in err and "services.policy_proxy.port=PORT" in err
    assert not (trial / "config.yaml").exists()


def test_service_elsewhere_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_TRAINER_URL", "http://elsewhere")
    status, _, err = command("up")
    assert status == 2 and "FRONTDESK_TRAINER_URL is set" in err


def test_missing_model_folder_is_refused(command: Command) -> None:
    status, _, err = command("train", "actor.path=/nowhere")
    assert status == 2 and "actor.path: /nowhere is not a Hugging Face model folder" in err


def test_config_is_printed_or_stored(command: Command, trial: Path) -> None:
    _, out, _ = command("config", "seed=5")
    assert "seed: 5" in out.splitlines() and not trial.exists()
    _, out, _ = command("config", "--write")
    assert out == f"{trial / 'config.yaml'}\n" and "experiment_name: e" in (trial / "config.yaml").read_text()


def test_services_stay_up_until_interrupted(start: Start, trial: Path, ports: list[int]) -> None:
    process = start(command="up")
    assert process.stdout
    said = list(iter(lambda: process.stdout.readline().split(" ")[0], "agent_runner"))
    assert said[-4:] == ["trajectory_store", "policy_server", "user_simulator", "policy_proxy"]
    running = [port for port in ports if is_busy("127.0.0.1", port)]
    assert len(running) == 6, "five services and Redis, no trainer"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert services_of(trial) == []
