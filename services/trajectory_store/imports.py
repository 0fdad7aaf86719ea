"""Owns reading trajectories that were written elsewhere: our own dumps, and AReaL's jsonl dumps (one row a turn, text only). Pure.

Imported trajectories are stored ad hoc: people can read and search them, they are never delivered to a trainer.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from services.common.wire.rollouts import Kind, RewardInfo, Sampling, Status, TaskRef, TaskStamp, Timings, Trajectory
from services.trajectory_store.dumps import from_json

Imported = tuple[Trajectory, list[bytes]]
"""A trajectory and its encoded call records."""


def read_file(path: Path) -> Iterator[Imported]:
    """All trajectories of a file: ``.json`` is our dump, ``.jsonl`` AReaL's. Raises ValueError that names the file and the line."""
    if path.suffix == ".json":
        try:
            yield from_json(path.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        return
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: only .json (our dumps) and .jsonl (AReaL's) can be imported")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield areal_row(line, path), []
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}:{number}: not a row of AReaL's dump: {error!r}") from error


def areal_row(line: bytes, path: Path) -> Trajectory:
    """One row (a turn) of AReaL's dump as a trajectory of one exchange. Its id follows from its content: importing twice adds nothing."""
    row = cast("dict[str, Any]", orjson.loads(line))
    digest = hashlib.blake2b(line.strip(), digest_size=12).hexdigest()
    kind = Kind.EVAL if "eval-rollout" in path.parts else Kind.TRAIN
    reward = float(row["reward"])
    return Trajectory(
        episode_id=f"areal-{digest}",
        group_id=f"areal-task-{row['task_id']}",
        sample_index=int(row.get("sample_idx", 0)),
        kind=kind,
        task=TaskRef(domain="unknown", split="unknown", task_id=str(row["task_id"])),
        stamp=TaskStamp(source="areal-dump", digest=digest),
        status=Status.SCORED,
        reward=reward,
        reward_info=RewardInfo(reward=float(row.get("original_reward", reward)), basis=[], note="as dumped by AReaL"),
        termination_reason="imported",
        messages=_messages(row),
        n_turns=1,
        policy_versions=_versions(row),
        sampling=Sampling(),
        timings=Timings(started_at=0.0, total_s=0.0),
    )


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    segments = cast("list[dict[str, Any]]", row.get("segments") or [])
    if segments:
        return [{"role": "assistant" if part["role"] == "gen" else "user", "content": part["text"]} for part in segments]
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def _versions(row: dict[str, Any]) -> list[int]:
    """Prompt tokens carry version -1."""
    runs = cast("list[tuple[int, int]]", row.get("version_rle") or [(row.get("head_version", -1), 0), (row.get("tail_version", -1), 0)])
    return sorted({int(version) for version, _ in runs if int(version) >= 0})
