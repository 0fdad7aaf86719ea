"""One command trains, from nothing to results, and leaves nothing running; interrupted, the same command goes on."""

import os
import signal
import subprocess

import pytest
from system_trial import Trial, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUICK = ("sft.enabled=false", "evaluator.before=false", "evaluator.after=false")
"""Straight to PPO."""
VICTIMS = ("user_simulator", "agent_runner", "policy_server", "policy_proxy", "trainer", "trajectory_store", "redis")
CHAOS_STEPS = 16
"""More than the kills use up: some steps pass while a killed process comes back."""


def finish(process: "subprocess.Popen[str]", trial: Trial) -> None:
    assert process.wait(timeout=1200) == 0, trial.output.read_text()[-6000:]
    assert trial.last_line() == f"results: {trial.directory / 'results.json'}"
    trial.assert_nothing_left()


def assert_accounts_balance(trial: Trial, steps: int) -> None:
    results = trial.results()
    assert (results["lost"], results["duplicated"]) == (0, 0)
    assert results["ppo_steps"] == steps
    assert results["trajectories_in"] == results["trained"] + results["dropped"] > 0
    assert results["trained"] > 0


def test_smoke_run_from_nothing_to_results(trial: Trial) -> None:
    finish(trial.start(), trial)
    assert_accounts_balance(trial, steps=3)
    results = trial.results()
    assert results.keys() >= {"reward_before", "reward_after", "ppo_steps", "wall_s", "trajectories_in", "trained", "dropped", "restarts"}
    assert results["restarts"] == {}
    assert results["wall_s"] > results["trainer_wall_s"]
    assert len(results["rollout_rewards"]) == 3
    assert (trial.directory / "rewards.png").stat().st_size > 1000


def kill_and_wait_for_its_return(trial: Trial, victim: str) -> None:
    pid = trial.pid_of(victim)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: trial.pid_of(victim) not in (None, pid) and trial.answers(victim), f"{victim} is back")


def test_interrupted_run_resumes_and_any_process_may_be_killed(trial: Trial) -> None:
    arguments = (*QUICK, f"total_train_steps={CHAOS_STEPS}")
    process = trial.start(*arguments)
    wait_for(lambda: trial.steps() >= 1 or process.poll() is not None, "a first PPO step")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, trial.output.read_text()[-6000:]
    trial.assert_nothing_left()
    assert not (trial.directory / "results.json").exists()

    process = trial.start(*arguments)
    for already, victim in enumerate(VICTIMS, start=trial.steps()):
        wait_for(lambda steps=already + 1: trial.steps() >= steps or process.poll() is not None, f"a step before {victim} is killed")
        assert process.poll() is None, trial.output.read_text()[-6000:]
        kill_and_wait_for_its_return(trial, victim)
    assert trial.steps() < CHAOS_STEPS, "the run was over before the last kill"
    finish(process, trial)
    assert "it is resumed" in trial.output.read_text()
    assert_accounts_balance(trial, steps=CHAOS_STEPS)
    assert trial.results()["restarts"] == dict.fromkeys(VICTIMS, 1)
