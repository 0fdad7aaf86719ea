"""Owns the files people read: one trajectory as ``json`` (complete, can be imported again) and as ``txt`` (a conversation). Pure.

Names are those of AReaL's tau2 example: ``generated/{task_id[:120]}-{id}.json`` and ``.txt``, evaluation below ``generated-eval``.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, cast

import msgspec
import orjson

from services.common.wire.calls import CallRecord, decode_call, encode_call, pack_ids, pack_logprobs
from services.common.wire.rollouts import Kind, Trajectory
from services.trajectory_store.outcomes import trajectory_of

DUMP_VERSION = 1
MAX_TASK_NAME = 120
_BARE = CallRecord(call_id="", session_id="", ordinal=0, prompt=b"", output=b"", versions=[], finish_reason="")
_REQUIRED = frozenset(field.name for field in msgspec.structs.fields(CallRecord) if field.required)
_UNSAFE = re.compile(r"[^A-Za-z0-9._\-]+")


def file_stem(experiment: str, trial: str, trajectory: Trajectory) -> PurePosixPath:
    """Where a dump lies below the file root, without its ending."""
    folder = "generated-eval" if trajectory.kind is Kind.EVAL else "generated"
    task = _UNSAFE.sub("_", trajectory.task.task_id)[:MAX_TASK_NAME]
    name = _UNSAFE.sub("_", trajectory.episode_id)
    return PurePosixPath(folder) / experiment / trial / f"{task}-{name}"


def to_json(trajectory: Trajectory, calls: Sequence[bytes]) -> bytes:
    """The whole trajectory with its token tree, token ids and logprobs as numbers."""
    body = {
        "dump_version": DUMP_VERSION,
        "trajectory": trajectory.model_dump(mode="json"),
        "calls": [_readable(decode_call(call)) for call in calls],
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2)


def from_json(data: bytes) -> tuple[Trajectory, list[bytes]]:
    """Inverse of `to_json`. Raises ValueError where it is no dump, or newer than this reader."""
    raw: Any = orjson.loads(data)
    if not isinstance(raw, dict) or "dump_version" not in raw:
        raise ValueError("not a trajectory dump: dump_version is missing")
    fields = cast("dict[str, Any]", raw)
    if fields["dump_version"] > DUMP_VERSION:
        raise ValueError(f"dump_version: {fields['dump_version']} is newer than the {DUMP_VERSION} this store reads")
    return trajectory_of(fields["trajectory"]), [encode_call(_record(call)) for call in fields["calls"]]


def _readable(record: CallRecord) -> dict[str, Any]:
    logprobs = record.output_logprobs()
    arrays: dict[str, Any] = {
        "prompt": record.prompt_ids().tolist(),
        "output": record.output_ids().tolist(),
        "logprobs": None if logprobs is None else logprobs.tolist(),
    }
    return {name: arrays.get(name, getattr(record, name)) for name in record.__struct_fields__}


def _record(fields: dict[str, Any]) -> CallRecord:
    logprobs = fields["logprobs"]
    arrays: dict[str, Any] = {
        "prompt": pack_ids(fields["prompt"]),
        "output": pack_ids(fields["output"]),
        "logprobs": None if logprobs is None else pack_logprobs(logprobs),
        "versions": [(version, count) for version, count in fields["versions"]],
    }
    values = {**fields, **arrays}
    # What has its default is left out, as it was when the record was made: then the bytes are the same again.
    return CallRecord(**{name: value for name, value in values.items() if name in _REQUIRED or value != getattr(_BARE, name)})


def to_text(trajectory: Trajectory) -> str:
    """The conversation, the checks behind the reward and the times, for reading."""
    lines = [
        f"episode   {trajectory.episode_id} (attempt {trajectory.attempt}, {trajectory.kind})",
        f"task      {trajectory.task.domain}/{trajectory.task.split} {trajectory.task.task_id}",
        f"group     {trajectory.group_id} [{trajectory.sample_index + 1} of {trajectory.group_size}]",
        f"result    {trajectory.status}, reward {trajectory.reward}, {trajectory.termination_reason}",
        f"versions  {', '.join(map(str, trajectory.policy_versions)) or '-'}",
        f"seconds   {trajectory.timings.total_s:.2f} (agent {trajectory.timings.agent_s:.2f}, user {trajectory.timings.user_s:.2f}, "
        f"env {trajectory.timings.env_s:.2f})",
    ]
    if trajectory.failure:
        lines.append(f"failure   {trajectory.failure.who}: {trajectory.failure.why}")
    if trajectory.reward_info:
        factors = ", ".join(f"{name} {value:g}" for name, value in trajectory.reward_info.breakdown.items())
        lines.append(f"reward    {' x '.join(trajectory.reward_info.basis)} ({factors})")
        lines += [f"  {'ok  ' if check.passed else 'FAIL'} {check.name} {check.detail}".rstrip() for check in trajectory.reward_info.checks]
    for number, message in enumerate(trajectory.messages):
        lines += ["", f"--- {number} {_speaker(message)}", *_said(message)]
    return "\n".join(lines) + "\n"


def _speaker(message: dict[str, Any]) -> str:
    requestor = message.get("requestor")
    return f"{message.get('role', '?')}{f' (for the {requestor})' if requestor else ''}"


def _said(message: dict[str, Any]) -> list[str]:
    content = message.get("content")
    said = [content if isinstance(content, str) else orjson.dumps(content).decode()] if content else []
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    for call in calls:
        function: dict[str, Any] = call.get("function", call)
        said.append(f"-> {function.get('name')}({function.get('arguments')})")
    return said
