"""Our episodes as a results file, in the hands of upstream's own tools: loading, metrics, viewing, re-grading."""

import asyncio
import io
import json
import random
import zlib
from pathlib import Path
from typing import Any

import pytest
from ours import play_ours
from scripted import SCRIPTS, Setting
from theirs import scripted_judge, upstream

from services.agent_runner.domains import DomainBackend, TaskSpec, open_backend
from services.agent_runner.records.results import ResultsInfo, export
from services.common.passk import mean_reward, pass_hat
from services.common.wire.rollouts import Failure, Kind, Owner, Sampling, Status, TaskRef, TaskStamp, Timings, Trajectory

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

TRIALS = ("oracle", "skips", "nothing", "noise", "breaks", "edges", "oracle")
CASES = [
    ("mock", False, 1),
    ("mock", True, 1),
    ("telecom", False, 19),
    ("telecom", True, 19),
    ("airline", False, 17),
    ("retail", False, 19),
]
BANKING = ("banking_knowledge", False, 20)
"""Viewed and counted, not re-graded: upstream's re-grading builds the default retrieval variant, which needs an embedding service."""


def played(backend: DomainBackend, task: TaskSpec, script: str, trial: int, *, solo: bool) -> Trajectory:
    rng = random.Random(f"{task.task_id} {trial}")
    setting = Setting(task, solo, backend.tool_schemas(task, solo=solo), backend.user_tool_schemas(task), {}, rng)
    episode, info, messages = asyncio.run(play_ours(backend, task, SCRIPTS[script](setting), solo=solo))
    truncated = episode.termination in ("max_steps", "too_many_errors")
    return Trajectory(
        episode_id=f"{backend.domain}-{zlib.crc32(task.task_id.encode()):x}-{trial}",
        group_id="g",
        sample_index=trial,
        kind=Kind.EVAL,
        task=TaskRef(domain=backend.domain, split="base", task_id=task.task_id, solo_mode=solo),
        stamp=TaskStamp(source=backend.source, digest=task.digest),
        status=Status.TRUNCATED if truncated else Status.SCORED,
        reward=info.reward,
        reward_info=info,
        termination_reason=episode.termination or "",
        messages=messages,
        sampling=Sampling(),
        seed=trial,
        timings=Timings(started_at=1_700_000_000.0 + 60 * trial, total_s=30.0),
    )


def failed(trajectory: Trajectory) -> Trajectory:
    facts = {"status": Status.FAILED, "reward": None, "reward_info": None, "termination_reason": "failed_infra"}
    return trajectory.model_copy(update=facts | {"failure": Failure(who=Owner.INFRA, why="the proxy was gone")})


def run_of(domain: str, nth: int, *, solo: bool) -> tuple[dict[str, TaskSpec], list[Trajectory], ResultsInfo]:
    backend = open_backend(domain, backend="tau2")
    tasks = {task.task_id: task for task in list(backend.tasks("base"))[::nth] if not solo or task.ticket}
    trajectories = [played(backend, task, script, trial, solo=solo) for task in tasks.values() for trial, script in enumerate(TRIALS)]
    trajectories[-1] = failed(trajectories[-1])
    first = next(iter(tasks.values()))
    info = ResultsInfo(
        domain=domain,
        policy=backend.policy(first, solo=solo),
        solo=solo,
        agent_model="scripted",
        user_model=None if solo else "scripted",
        user_guidelines=backend.user_guidelines(first),
        tool_kinds=backend.tool_kinds(),
    )
    return tasks, trajectories, info


def load(results: dict[str, Any], folder: Path) -> Any:
    file = folder / "results.json"
    file.write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
    return upstream("data_model.simulation").Results.load(file)


def rewards_by_task(tasks: dict[str, TaskSpec], trajectories: list[Trajectory]) -> list[list[float | None]]:
    return [[one.reward for one in trajectories if one.task.task_id == task_id] for task_id in tasks]


@pytest.mark.parametrize(("domain", "solo", "nth"), [*CASES, BANKING])
def test_upstreams_metrics_are_ours(domain: str, solo: bool, nth: int, tmp_path: Path) -> None:
    tasks, trajectories, info = run_of(domain, nth, solo=solo)
    results = load(export(trajectories, tasks, info=info), tmp_path)
    metrics = upstream("metrics.agent_metrics").compute_metrics(results)
    trials = rewards_by_task(tasks, trajectories)
    rewards = [reward for of_task in trials for reward in of_task if reward is not None]
    assert metrics.infra_error_count == 1
    assert metrics.total_simulations == len(rewards)
    assert metrics.avg_reward == pytest.approx(sum(rewards) / len(rewards))
    assert metrics.pass_hat_ks == {k: pytest.approx(estimate.value) for k, estimate in pass_hat(trials).items()}
    assert mean_reward(trials).value == pytest.approx(metrics.avg_reward, abs=0.2)
    checked = [one for one in results.simulations if one.reward_info and one.reward_info.action_checks]
    matched = [check.action_match for one in checked for check in one.reward_info.action_checks if check.tool_type.value == "write"]
    assert (metrics.total_write_actions, metrics.correct_write_actions) == (len(matched), sum(matched))


@pytest.mark.parametrize(("domain", "solo", "nth"), [*CASES, BANKING])
def test_upstreams_viewer_shows_every_episode(domain: str, solo: bool, nth: int, tmp_path: Path) -> None:
    tasks, trajectories, info = run_of(domain, nth, solo=solo)
    results = load(export(trajectories, tasks, info=info), tmp_path)
    display = upstream("utils.display").ConsoleDisplay
    console = upstream("utils.display").Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(display, "console", console)
        for simulation in results.simulations:
            display.display_simulation(simulation, show_details=True)
        display.display_agent_metrics(upstream("metrics.agent_metrics").compute_metrics(results))
    shown = console.file.getvalue()
    assert all(simulation.task_id in shown for simulation in results.simulations)


@pytest.mark.parametrize(("domain", "solo", "nth"), CASES)
def test_upstreams_regrading_gives_the_same_rewards(domain: str, solo: bool, nth: int, tmp_path: Path) -> None:
    tasks, trajectories, info = run_of(domain, nth, solo=solo)
    # An assertion that raises scores 0 here and stops upstream's re-grading of the whole file.
    trajectories = [one for one in trajectories if not any(check.detail.startswith("raised:") for check in _checks(one))]
    results = load(export(trajectories, tasks, info=info), tmp_path)
    with scripted_judge():
        graded = upstream("scripts.evaluate_trajectories").compute_simulation_rewards(results)
    for before, after in zip(results.simulations, graded.simulations, strict=True):
        if before.termination_reason.value == "infrastructure_error":
            continue
        assert after.reward_info.reward == before.reward_info.reward, before.id
        for part in ("db_check", "env_assertions", "action_checks"):
            # Upstream writes "nothing to check" as null here and as an empty list there.
            assert (getattr(after.reward_info, part) or []) == (getattr(before.reward_info, part) or []), f"{before.id}: {part}"
        assert _met(after.reward_info.communicate_checks) == _met(before.reward_info.communicate_checks), before.id


def _checks(one: Trajectory) -> list[Any]:
    return one.reward_info.checks if one.reward_info else []


def _met(checks: list[Any] | None) -> list[tuple[str, bool]]:
    return [(check.info, check.met) for check in checks or []]
