"""Owns the commands beside serving: ``corpus``, ``tasks``, ``replay``, ``results``. All but a relive run in this process.

Exit status: 0 as hoped, 1 a replay found a difference, 2 it could not be done. Refuses to print anything but the result on standard output.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from services.agent_runner.catalog import Catalog
from services.agent_runner.records.archive import Wanted, pack, read_archive
from services.agent_runner.records.corpus import write_corpus
from services.agent_runner.records.replay import Mode, ReplayReport, Replays
from services.agent_runner.reward.judge import open_judge
from services.agent_runner.store import StoreClient
from services.common.app import admin_headers
from services.common.config import ExperimentConfig, load_config
from services.common.errors import NotFound, RemoteError, ServiceError
from services.common.http import ServiceClient
from services.common.serve import config_arguments
from services.common.wire.rollouts import Trajectory

EQUAL, DIFFERENT, ERROR = 0, 1, 2
PROGRAM = "python -m services.agent_runner"
STORE_TIMEOUT_S = 30.0
RELIVE_TIMEOUT_S = 3600.0


def run(command: str, arguments: list[str]) -> int:
    """One command; its exit status."""
    description, add, work = COMMANDS[command]
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {command}", description=description)
    add(parser)
    config_arguments(parser)
    # Intermixed, because a positional argument and overrides would otherwise have to stand side by side.
    parsed = parser.parse_intermixed_args(arguments)
    try:
        return asyncio.run(work(load_config(parsed.config, parsed.overrides), parsed))
    except ServiceError as error:
        return _failed(error.detail)
    except (RemoteError, OSError, ValueError) as error:
        return _failed(str(error))


async def corpus(config: ExperimentConfig, parsed: argparse.Namespace) -> int:
    """Demonstrations as JSON lines."""
    count = write_corpus(config, parsed.out, limit=parsed.limit, seed=parsed.seed)
    sys.stdout.write(f"{count} conversations in {parsed.out}\n")
    return EQUAL


async def tasks(config: ExperimentConfig, parsed: argparse.Namespace) -> int:
    """What there is to play."""
    catalog = Catalog(config)
    if parsed.domain is None:
        for one in await catalog.domains():
            splits = ", ".join(f"{split} {size}" for split, size in one.splits.items())
            sys.stdout.write(f"{one.domain}: {splits or one.problem} ({one.source or 'not available'})\n")
        return EQUAL
    split = parsed.split or await catalog.default_split(parsed.domain)
    if parsed.task_id is not None:
        _, task = await catalog.task(parsed.domain, split, parsed.task_id)
        _write_json(task.raw)
        return EQUAL
    found = await catalog.tasks(parsed.domain, split)
    floor = await catalog.floor(found, solo=config.econfig.solo_mode)
    for task in found.tasks:
        solo = " solo" if task.ticket is not None else ""
        basis = "×".join(task.reward_basis) or "nothing"
        earned = floor.rewards.get(task.task_id)
        sys.stdout.write(f"{task.task_id}  {basis}  {len(task.actions)} actions{solo}  floor {'-' if earned is None else f'{earned:g}'}\n")
    mean = "none" if floor.mean is None else f"{floor.mean:.3f}"
    sys.stdout.write(f"{len(found.tasks)} tasks of {parsed.domain}/{split}, do-nothing floor {mean} ({found.backend.source})\n")
    return EQUAL


async def replay(config: ExperimentConfig, parsed: argparse.Namespace) -> int:
    """A trajectory again."""
    mode = Mode(parsed.mode)
    if mode is Mode.RELIVE:
        return await _relive(config, parsed)
    trajectory = await _trajectory(config, parsed.trajectory)
    async with AsyncExitStack() as stack:
        judge = open_judge(config.econfig)
        if judge is not None:
            stack.push_async_callback(judge.close)
        replays = Replays(config, judge)
        if mode is Mode.REEXECUTE:
            report = await replays.reexecute(trajectory, any_source=parsed.any_source)
        else:
            report = await replays.rescore(trajectory, retail_reward=parsed.retail_reward, any_source=parsed.any_source)
    _write_json(report.model_dump(mode="json"))
    sys.stderr.write(summary(report) + "\n")
    return EQUAL if report.equal else DIFFERENT


def summary(report: ReplayReport) -> str:
    """One line for people."""
    if (first := report.first_difference) is not None:
        where = f"turn {first.turn}, messages[{first.index}], {first.tool}"
        return f"DIFFERENT: {where}: expected {first.expected.content[:200]!r}, got {first.got.content[:200]!r}"
    if report.end_state is not None and not report.end_state.equal:
        return f"DIFFERENT: {report.n_results} tool results are equal, the end state is not"
    if report.reward is not None and not report.reward.equal:
        return f"DIFFERENT: expected reward {report.reward.expected}, got {report.reward.got}"
    reward = "" if report.reward is None else f", reward {report.reward.got}"
    return f"EQUAL: {report.n_results} tool results{', end state' if report.end_state else ''}{reward}"


async def results(config: ExperimentConfig, parsed: argparse.Namespace) -> int:
    """Trajectories of the store in tau2's format."""
    wanted = Wanted(
        domain=parsed.domain or config.econfig.domain,
        solo=config.econfig.solo_mode if parsed.solo is None else parsed.solo,
        kind=parsed.kind,
        split=parsed.split,
        policy_version=parsed.policy_version,
    )
    async with _store(config, parsed.store) as client:
        archive = await read_archive(StoreClient(client), wanted)
    packed = await pack(config, Catalog(config), wanted, archive)
    _save(parsed.out, packed.results)
    sys.stdout.write("\n".join([*packed.figures, f"written to {parsed.out}"]) + "\n")
    return EQUAL


def _corpus_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--limit", type=int, default=256, help="conversations to write")
    parser.add_argument("--seed", type=int, default=0, help="draws tasks and qualities")


def _tasks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", help="list its tasks; without it, list the domains")
    parser.add_argument("--split", help="a split, or a task file that the config names")
    parser.add_argument("--task-id", help="print this one in tau2's own schema")


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trajectory", help="a JSON file, or the episode id of a trajectory in the store")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], default=Mode.REEXECUTE.value)
    parser.add_argument("--turn", type=int, help="relive: the agent's turn that is made anew, 0 the first")
    parser.add_argument("--retail-reward", choices=["db", "db+communicate", "db+judge"], help="rescore: another variant of retail's reward")
    parser.add_argument("--any-source", action="store_true", help="compare although another back end or version made it")


def _results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="results.json to write")
    parser.add_argument("--store", help="address of the trajectory store, instead of the config's")
    parser.add_argument("--domain", help="default econfig.domain; one file holds one domain")
    parser.add_argument("--split", help="only trajectories of this split")
    parser.add_argument("--kind", choices=["eval", "train", "demo"], default="eval")
    parser.add_argument("--solo", action=argparse.BooleanOptionalAction, help="default econfig.solo_mode; one file holds one mode")
    parser.add_argument("--policy-version", type=int, help="only episodes that this version alone has played")


Work = Callable[[ExperimentConfig, argparse.Namespace], Coroutine[Any, Any, int]]
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Work]] = {
    "corpus": ("Write demonstrations as JSON lines.", _corpus_arguments, corpus),
    "tasks": ("List domains, or the tasks of one with the floor of doing nothing.", _tasks_arguments, tasks),
    "replay": ("Replay a trajectory; exit 0 where everything is equal, 1 where not, 2 on errors.", _replay_arguments, replay),
    "results": ("Export trajectories in tau2's results format.", _results_arguments, results),
}


async def _trajectory(config: ExperimentConfig, name: str) -> Trajectory:
    if name.endswith(".json"):
        return _from_file(Path(name))
    async with _store(config, None) as client:
        found = await StoreClient(client).get(name)
    if found is None:
        raise NotFound(f"{name}: neither a .json file nor an episode with a trajectory in the store")
    return found


def _from_file(path: Path) -> Trajectory:
    try:
        return Trajectory.model_validate(orjson.loads(path.read_bytes()))
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a trajectory: {error}") from error


async def _relive(config: ExperimentConfig, parsed: argparse.Namespace) -> int:
    trajectory = await _trajectory(config, parsed.trajectory)
    body = {
        "mode": Mode.RELIVE.value,
        "trajectory": trajectory.model_dump(mode="json"),
        "turn": parsed.turn,
        "any_source": parsed.any_source,
    }
    async with ServiceClient("agent_runner", config.services.url("agent_runner"), timeout_s=RELIVE_TIMEOUT_S) as client:
        lived = Trajectory.model_validate(await client.post("/v1/replays?wait=true", body))
    _write_json(lived.model_dump(mode="json"))
    sys.stderr.write(f"{lived.status.value}, reward {lived.reward} after turn {parsed.turn} of one with {trajectory.reward}\n")
    return ERROR if lived.failure else EQUAL


def _store(config: ExperimentConfig, url: str | None) -> ServiceClient:
    return ServiceClient(
        "trajectory_store", url or config.services.url("trajectory_store"), timeout_s=STORE_TIMEOUT_S, headers=admin_headers()
    )


def _save(path: Path, value: object) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _write_json(value: object) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def _failed(why: str) -> int:
    sys.stderr.write(f"error: {why}\n")
    return ERROR
