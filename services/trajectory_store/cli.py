"""Owns the commands for people: list, show, export, import, audit, drops, queue. They talk to a running store over HTTP.

``python -m services.trajectory_store COMMAND [--url URL | --config FILE] [--trial experiment/trial] …``
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import orjson

from services.common.app import admin_headers
from services.common.config import ConfigError, ServicesConfig, load_config
from services.common.config.base import http_url
from services.common.errors import RemoteError
from services.common.http import MSGPACK, ServiceClient
from services.common.wire.rollouts import Kind, Status, Trajectory
from services.common.wire.store import WholeTrajectory
from services.trajectory_store.dumper import write_dump
from services.trajectory_store.dumps import to_json, to_text
from services.trajectory_store.imports import read_file
from services.trajectory_store.store import trial_of

PAGE = 200
FILTERS = ("kind", "group_id", "task_id", "status", "version", "min_reward", "max_reward", "text")
URL_ENV = "FRONTDESK_TRAJECTORY_STORE_URL"

Command = Callable[[ServiceClient, argparse.Namespace], Awaitable[int]]


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status: 0, 1 for a bad finding, 2 for an error."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        return asyncio.run(_run(options))
    except (RemoteError, ConfigError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


async def _run(options: argparse.Namespace) -> int:
    command: Command = COMMANDS[options.command]
    async with ServiceClient("trajectory_store", _base_url(options), timeout_s=60.0, retry_s=10.0, headers=admin_headers()) as client:
        return await command(client, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trajectory_store")
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("names", nargs="*", help="show: an episode id; import: files; queue: pause, resume or drain")
    parser.add_argument("--url", type=http_url, help=f"of the store, default ${URL_ENV}, else the config's, else http://127.0.0.1:8101")
    parser.add_argument("--config", type=Path, help="experiment YAML")
    parser.add_argument("--trial", help="experiment/trial, where the store serves several")
    parser.add_argument("--limit", type=int, default=0, help="list, export: at most this many")
    parser.add_argument("--json", action="store_true", help="list, show: JSON instead of text")
    parser.add_argument("--to", type=Path, help="export: the folder; default the config's cluster.fileroot")
    parser.add_argument("--kind", choices=[*Kind])
    parser.add_argument("--status", choices=[*Status])
    parser.add_argument("--group-id")
    parser.add_argument("--task-id")
    parser.add_argument("--version", type=int, help="a policy version that answered")
    parser.add_argument("--min-reward", type=float)
    parser.add_argument("--max-reward", type=float)
    parser.add_argument("--text", help="in the messages")
    return parser


def _base_url(options: argparse.Namespace) -> str:
    services = load_config(options.config).services if options.config else ServicesConfig()
    base = str(options.url or services.url("trajectory_store")).rstrip("/")
    return f"{base}/t/{options.trial}" if options.trial else base


async def _heads(client: ServiceClient, options: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    query = {name: getattr(options, name) for name in FILTERS if getattr(options, name) is not None}
    after, left = 0, options.limit or sys.maxsize
    while left > 0:
        page = await client.get(f"/v1/trajectories?{urlencode({**query, 'after': after, 'limit': min(left, PAGE)})}")
        for head in page["items"]:
            yield head
        left -= len(page["items"])
        after = page["next"]
        if not page["more"]:
            return


async def _whole(client: ServiceClient, episode_id: str) -> tuple[Trajectory, list[bytes]]:
    trajectory = Trajectory.model_validate(await client.get(f"/v1/trajectories/{quote(episode_id)}"))
    if trajectory.session_id is None:
        return trajectory, []
    try:
        calls = await client.request("GET", f"/v1/sessions/{quote(trajectory.session_id)}/calls")
    except RemoteError as error:
        if error.status == 404:
            return trajectory, []
        raise
    return trajectory, msgspec.msgpack.decode(calls, type=list[bytes])


async def _list(client: ServiceClient, options: argparse.Namespace) -> int:
    async for head in _heads(client, options):
        _say(orjson.dumps(head).decode() if options.json else _line(head))
    return 0


def _line(head: Mapping[str, Any]) -> str:
    reward = "-" if head["reward"] is None else f"{head['reward']:g}"
    versions = ",".join(map(str, head["policy_versions"])) or "-"
    task = head["task"]
    return f"{head['episode_id']}  {head['kind']}  {head['status']}  {reward}  v{versions}  {task['domain']}/{task['task_id']}"


async def _show(client: ServiceClient, options: argparse.Namespace) -> int:
    for episode_id in _names(options, "an episode id"):
        trajectory, calls = await _whole(client, episode_id)
        _say(to_json(trajectory, calls).decode() if options.json else to_text(trajectory))
    return 0


async def _export(client: ServiceClient, options: argparse.Namespace) -> int:
    config = load_config(options.config) if options.config else None
    trial = options.trial or (trial_of(config) if config else None)
    root = options.to or (Path(config.cluster.fileroot) if config else None)
    if trial is None or root is None:
        raise ValueError("export: give --config, or --trial and --to")
    written = 0
    async for head in _heads(client, options):
        path = write_dump(root, trial, *await _whole(client, head["episode_id"]))
        written += 1
        _say(str(path))
    _say(f"{written} trajectories exported")
    return 0


async def _import(client: ServiceClient, options: argparse.Namespace) -> int:
    outcomes: dict[str, int] = {}
    for name in _names(options, "files"):
        for trajectory, calls in read_file(Path(name)):
            outcome = await _put(client, trajectory, calls)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    _say(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "nothing to import")
    return 0


async def _put(client: ServiceClient, trajectory: Trajectory, calls: list[bytes]) -> str:
    path = f"/v1/trajectories/{quote(trajectory.episode_id)}"
    if not calls:
        return (await client.put(path, trajectory.model_dump(mode="json")))["outcome"]
    body = msgspec.msgpack.encode(WholeTrajectory(trajectory=trajectory.model_dump(mode="json"), calls=calls))
    return orjson.loads(await client.request("PUT", path, data=body, content_type=MSGPACK))["outcome"]


async def _audit(client: ServiceClient, _options: argparse.Namespace) -> int:
    verdict, stats = await client.get("/v1/audit"), await client.get("/v1/stats")
    for kind, counts in stats["kinds"].items():
        _say(
            "{}: in {trajectories_in} = trained {trained} + dropped {dropped} + waiting {waiting} + leased {leased}".format(kind, **counts)
        )
        for reason, count in sorted(counts["drops"].items()):
            _say(f"  dropped {count} {reason}")
    for text in (*stats["losses"].values(), *stats["alarms"].values(), *verdict["problems"]):
        _say(f"PROBLEM {text}")
    _say("balanced" if verdict["balanced"] else "NOT balanced")
    return 0 if verdict["balanced"] else 1


async def _drops(client: ServiceClient, _options: argparse.Namespace) -> int:
    ledger = await client.get("/v1/drops")
    for reason, count in sorted(ledger["counts"].items(), key=lambda item: -item[1]):
        _say(f"{count}  {reason}  such as {', '.join(ledger['examples'][reason])}")
    return 0


async def _queue(client: ServiceClient, options: argparse.Namespace) -> int:
    if not options.names:
        state = await client.get("/v1/queue")
    elif options.names[0] in ("pause", "resume", "drain"):
        body = {"wait_s": 30 if options.names[0] == "drain" else 0} | ({"kinds": [options.kind]} if options.kind else {})
        state = await client.post(f"/v1/queue/{options.names[0]}", body)
    else:
        raise ValueError(f"queue: {options.names[0]} is not pause, resume or drain")
    _say(f"{state['running']} running; paused: {state['paused'] or 'nothing'}")
    return 0


def _names(options: argparse.Namespace, what: str) -> list[str]:
    if not options.names:
        raise ValueError(f"{options.command}: name {what}")
    return options.names


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


COMMANDS: dict[str, Command] = {
    "list": _list,
    "show": _show,
    "export": _export,
    "import": _import,
    "audit": _audit,
    "drops": _drops,
    "queue": _queue,
}
