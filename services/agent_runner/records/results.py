"""Owns the export of trajectories in tau2's own results format, which upstream's viewer, metrics and re-grading read (docs/upstream.md).

Pure conversion. Refuses to mix what upstream keeps in separate files: domains, and solo with normal episodes. Failed episodes become
upstream's infrastructure errors, which its metrics leave out; nothing here turns one into a reward.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.agent_runner.conversation.messages import Malformed, Message, read_record
from services.agent_runner.domains import TaskSpec
from services.agent_runner.reward.evaluator import JUDGED
from services.common.wire.rollouts import Check, RewardInfo, Status, Trajectory

Json = dict[str, Any]

INFRASTRUCTURE_ERROR = "infrastructure_error"


@dataclass(frozen=True, slots=True)
class ResultsInfo:
    """What a results file says about the run as a whole."""

    domain: str
    """As upstream names it, ``telecom-workflow`` included."""
    policy: str = ""
    """The agent's policy text."""
    solo: bool = False
    max_steps: int = 100
    max_errors: int = 10
    seed: int | None = None
    agent_model: str | None = None
    agent_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    user_model: str | None = None
    user_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    user_guidelines: str | None = None
    commit: str = "unknown"
    """Of the code that ran the episodes."""
    tool_kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tool name -> ``read``, ``write``, ``think`` or ``generic``; upstream counts matched actions by them."""
    retrieval: str | None = None
    """Banking: upstream's name of how the agent searches the knowledge base."""


def export(trajectories: Sequence[Trajectory], tasks: Mapping[str, TaskSpec], *, info: ResultsInfo) -> Json:
    """Upstream's ``Results`` as JSON-able values. ``tasks`` has every task id that a trajectory names.

    Trials of a task are numbered from 0 in the order of their group, sample and start. Raises ValueError for a trajectory of another domain
    or mode than ``info`` says, or of a task that is not in ``tasks``.
    """
    for one in trajectories:
        _check_belongs(one, tasks, info)
    ordered = sorted(trajectories, key=lambda one: (one.group_id, one.sample_index, one.timings.started_at, one.episode_id))
    trials: Counter[str] = Counter()
    simulations: list[Json] = []
    for one in ordered:
        simulations.append(simulation(one, tasks[one.task.task_id], trials[one.task.task_id], info.tool_kinds))
        trials[one.task.task_id] += 1
    return {
        "timestamp": _timestamp(min((one.timings.started_at for one in trajectories), default=0.0)),
        "info": _info(info, max(trials.values(), default=0)),
        "tasks": [task.raw for task_id, task in tasks.items() if task_id in trials],
        "simulations": simulations,
    }


def _check_belongs(one: Trajectory, tasks: Mapping[str, TaskSpec], info: ResultsInfo) -> None:
    if one.task.domain != info.domain or one.task.solo_mode != info.solo:
        mode = "solo" if one.task.solo_mode else "normal"
        raise ValueError(
            f"{one.episode_id}: {one.task.domain}, {mode}, does not belong into one results file with {info.domain}; export it apart"
        )
    if one.task.task_id not in tasks:
        raise ValueError(f"{one.episode_id}: tasks has no {one.task.task_id!r}")


def _info(info: ResultsInfo, num_trials: int) -> Json:
    return {
        "git_commit": info.commit,
        "num_trials": num_trials,
        "max_steps": info.max_steps,
        "max_errors": info.max_errors,
        "seed": info.seed,
        # Upstream's tools tell solo runs from others by these two names.
        "agent_info": {
            "implementation": "llm_agent_solo" if info.solo else "llm_agent",
            "llm": info.agent_model,
            "llm_args": dict(info.agent_arguments),
        },
        "user_info": {
            "implementation": "dummy_user" if info.solo else "user_simulator",
            "llm": info.user_model,
            "llm_args": dict(info.user_arguments),
            "global_simulation_guidelines": info.user_guidelines,
        },
        "environment_info": {"domain_name": info.domain, "policy": info.policy, "tool_defs": None},
        "retrieval_config": info.retrieval,
    }


def simulation(one: Trajectory, task: TaskSpec, trial: int, tool_kinds: Mapping[str, str]) -> Json:
    """Upstream's ``SimulationRun`` of one trajectory."""
    failed = one.status is Status.FAILED
    started, seconds = one.timings.started_at, one.timings.total_s
    notes: Json = {"source": one.stamp.source, "task_digest": one.stamp.digest, "status": one.status.value, "attempt": one.attempt}
    if one.failure is not None:
        notes |= {"error": one.failure.why, "error_type": one.failure.who.value, "failed_after_attempts": one.attempt}
    return {
        "id": one.episode_id,
        "task_id": one.task.task_id,
        "timestamp": _timestamp(started),
        "start_time": _timestamp(started),
        "end_time": _timestamp(started + seconds),
        "duration": seconds,
        "termination_reason": INFRASTRUCTURE_ERROR if failed else one.termination_reason,
        # The policy is served by ourselves, so its tokens cost nothing; what the user's model costs is not recorded.
        "agent_cost": 0.0,
        "user_cost": None,
        "reward_info": None if failed or one.reward_info is None else reward_info(one.reward_info, task, tool_kinds),
        "messages": _messages(one),
        "trial": trial,
        "seed": one.seed,
        "mode": "half_duplex",
        "info": notes,
    }


def _messages(one: Trajectory) -> list[Json]:
    # Only the order of messages is recorded, and upstream sorts them by time: they are spread evenly over the episode.
    pace = one.timings.total_s / max(1, len(one.messages))
    return [
        message_json(raw) | {"turn_idx": index, "timestamp": _timestamp(one.timings.started_at + index * pace)}
        for index, raw in enumerate(one.messages)
    ]


def message_json(raw: Json) -> Json:
    """Upstream's message for one of a trajectory. What the agent said and nobody could parse is kept as ``raw_data``."""
    try:
        message = read_record(raw)
    except Malformed as error:
        text = raw.get("content")
        return {
            "role": raw["role"],
            "content": text if isinstance(text, str) else None,
            "cost": 0.0,
            "raw_data": {"message": raw, "error": str(error)},
        }
    if message.role == "tool":
        answer: Json = {"id": message.tool_call_id, "role": "tool", "content": message.content, "requestor": message.requestor}
        return answer | {"error": message.error}
    cost = 0.0 if message.role == "assistant" else None
    spoken: Json = {"role": message.role, "content": message.content, "tool_calls": _calls(message), "cost": cost}
    return spoken | ({"raw_data": {"message": raw}} if raw.get("reasoning_content") else {})


def _calls(message: Message) -> list[Json] | None:
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments, "requestor": message.role} for call in message.tool_calls]
    return calls or None


def reward_info(info: RewardInfo, task: TaskSpec, tool_kinds: Mapping[str, str]) -> Json:
    """Upstream's ``RewardInfo``. An episode that neither side ended has a reward and nothing else, there as here."""
    notes: Json = {"note": info.note} if info.note else {}
    if not info.breakdown:
        return {"reward": info.reward, "reward_basis": None, "info": notes}
    return {
        "reward": info.reward,
        "reward_basis": info.basis,
        "reward_breakdown": info.breakdown,
        "db_check": _db_check(_of(info, "DB")),
        "env_assertions": _paired(task, info, "env_assertions", "ENV_ASSERTION", _env_assertion),
        "action_checks": _paired(task, info, "actions", "ACTION", lambda raw, check: _action_check(raw, check, tool_kinds)),
        "communicate_checks": _paired(task, info, "communicate_info", "COMMUNICATE", _communicate_check),
        "nl_assertions": _paired(task, info, "nl_assertions", JUDGED, _nl_assertion),
        "info": notes | ({"variant": info.variant} if info.variant else {}),
    }


def _of(info: RewardInfo, kind: str) -> list[Check]:
    return [check for check in info.checks if check.kind == kind]


def _db_check(checks: Sequence[Check]) -> Json | None:
    passed = all(check.passed for check in checks)
    return {"db_match": passed, "db_reward": float(passed)} if checks else None


def _paired(task: TaskSpec, info: RewardInfo, key: str, kind: str, convert: Callable[[Any, Check], Json]) -> list[Json] | None:
    """The task's own entries with their verdicts; None where there are none, or were not checked, as when a judge was not asked."""
    entries: list[Any] = (task.criteria or {}).get(key) or []
    checks = _of(info, kind)
    if len(entries) != len(checks):
        return None
    return [convert(entry, check) for entry, check in zip(entries, checks, strict=True)] or None


def _env_assertion(raw: Json, check: Check) -> Json:
    return {"env_assertion": raw, "met": check.passed, "reward": float(check.passed)}


def _action_check(raw: Json, check: Check, tool_kinds: Mapping[str, str]) -> Json:
    return {
        "action": raw,
        "action_match": check.passed,
        "action_reward": float(check.passed),
        "tool_type": tool_kinds.get(raw["name"]),
    }


def _communicate_check(raw: str, check: Check) -> Json:
    return {"info": raw, "met": check.passed, "justification": check.detail}


def _nl_assertion(raw: str, check: Check) -> Json:
    return {"nl_assertion": raw, "met": check.passed, "justification": check.detail}


def _timestamp(seconds: float) -> str:
    """Unix time as upstream writes times: ISO, without a zone. Ours are UTC."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
