"""Owns which episodes of leased groups are trained on, and the reason of each that is not. Pure functions over the wire's batches.

Refuses silence: every episode that came in is either in a `Chosen` group or in the drops.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import ValidationError

from services.common.config.experiment import DynamicFilterConfig
from services.common.wire.calls import Row, decode_call, rows_of
from services.common.wire.rollouts import Trajectory
from services.common.wire.store import Episode, Group

Origin = tuple[str, str]
"""(domain, source of its tasks and rewards)."""


@dataclass(frozen=True, slots=True)
class Member:
    """One episode as it came in."""

    episode_id: str
    reward: float | None
    rows: list[Row]
    problem: str
    """Reason why it cannot be trained on; empty where it can."""
    turn_rewards: list[float] | None = None
    """One a row; None where every row has the reward of the episode."""
    origin: Origin | None = None
    """Domain and source; None where the episode failed or cannot be read."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A leased group, decoded."""

    group_id: str
    members: list[Member]


@dataclass(frozen=True, slots=True)
class Sample:
    """An episode to train on."""

    episode_id: str
    reward: float
    rows: list[Row]
    turn_rewards: list[float] | None = None
    """As in `Member`."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A group to train on: the episodes that are compared with each other."""

    group_id: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides over an episode."""

    version: int
    """Of the weights that will be trained."""
    max_age: int
    max_row_tokens: int
    filter: DynamicFilterConfig | None


@dataclass(slots=True)
class Selection:
    """The outcome for some delivered groups."""

    chosen: list[Chosen] = field(default_factory=list[Chosen])
    drops: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def trained(self) -> list[str]:
        """Ids of the episodes to train on."""
        return [sample.episode_id for group in self.chosen for sample in group.samples]


def decode(group: Group) -> Delivered:
    """A group of the wire. What cannot be read becomes a member with a problem. Rows without a generated token are left out."""
    members = [_member(episode) for episode in group.episodes]
    return Delivered(group.group_id, members)


def _member(episode: Episode) -> Member:
    episode_id = str(episode.trajectory["episode_id"])
    try:
        trajectory = Trajectory.model_validate(episode.trajectory)
        calls = rows_of([decode_call(call) for call in episode.calls])
    except (ValidationError, ValueError):
        return Member(episode_id, None, [], "corrupt")
    rows = [row for row in calls if row.n_output]
    if trajectory.failure is not None:
        return Member(episode_id, None, rows, f"failed_{trajectory.failure.who}")
    problem = "" if episode.complete and rows else "incomplete"
    rewards = _distinct_turn_rewards(trajectory)
    if rewards is not None and len(rewards) != len(calls):
        # Which reward belongs to which call would be a guess.
        problem, rewards = problem or "turn_rewards_mismatch", None
    if rewards is not None:
        rewards = [reward for reward, row in zip(rewards, calls, strict=True) if row.n_output]
    return Member(episode_id, trajectory.reward, rows, problem, rewards, origin_of(trajectory))


def origin_of(trajectory: Trajectory) -> Origin | None:
    """Where an episode was played; None where it failed, perhaps before that was known."""
    return None if trajectory.failure is not None else (trajectory.task.domain, trajectory.stamp.source)


def _distinct_turn_rewards(trajectory: Trajectory) -> list[float] | None:
    """The rewards of the agent's calls in their order, unless all of them are that of the episode."""
    rewards = trajectory.turn_rewards
    return None if all(reward == trajectory.reward for reward in rewards) else rewards


def select(groups: Sequence[Delivered], rules: Rules) -> Selection:
    """Sorts the episodes of ``groups`` into those to train on and drops with their reasons.

    A bad member costs only itself, unless fewer than two are left to compare (``group_too_small``). A group whose mean reward says that
    every episode succeeded, or none did, carries no signal (both sides, by episode reward).
    """
    selection = Selection()
    for group in groups:
        problems = {member.episode_id: member.problem or _unfit(member, rules) for member in group.members}
        usable = [member for member in group.members if not problems[member.episode_id]]
        verdict = _group_verdict(usable, rules.filter)
        selection.drops |= {episode_id: problem for episode_id, problem in problems.items() if problem}
        if verdict:
            selection.drops |= {member.episode_id: verdict for member in usable}
        else:
            samples = [Sample(member.episode_id, reward_of(member), member.rows, member.turn_rewards) for member in usable]
            selection.chosen.append(Chosen(group.group_id, samples))
    return selection


def _unfit(member: Member, rules: Rules) -> str:
    if any(row.logprobs is None for row in member.rows):
        return "no_logprobs"
    if max(len(row.ids) for row in member.rows) > rules.max_row_tokens:
        return "over_length"
    if rules.version - oldest_version(member.rows) > rules.max_age:
        return "stale"
    return ""


def _group_verdict(usable: Sequence[Member], rule: DynamicFilterConfig | None) -> str:
    if len(usable) < 2:
        return "group_too_small"
    if rule is None:
        return ""
    mean = sum(reward_of(member) for member in usable) / len(usable)
    if mean > rule.drop_above:
        return "filtered_all_success"
    return "filtered_all_fail" if mean < rule.drop_below else ""


def reward_of(member: Member) -> float:
    """The reward of a member that has one."""
    if member.reward is None:
        raise ValueError(f"reward: episode {member.episode_id} has none")
    return member.reward


def oldest_version(rows: Sequence[Row]) -> int:
    """The policy version of the oldest generated token."""
    return int(min(row.versions.min() for row in rows))


def version_tokens(rows: Sequence[Row]) -> dict[int, int]:
    """Generated tokens by policy version."""
    if not rows:
        return {}
    versions, counts = np.unique(np.concatenate([row.versions for row in rows]), return_counts=True)
    return {int(version): int(count) for version, count in zip(versions, counts, strict=True)}


def delivered_stats(groups: Sequence[Delivered], drops: Mapping[str, str]) -> dict[str, float]:
    """What the store handed out, under ``rollout/``."""
    members = [member for group in groups for member in group.members]
    rewards = [member.reward for member in members if member.reward is not None]
    stats = {
        "rollout/n_groups": float(len(groups)),
        "rollout/n_episodes": float(len(members)),
        "rollout/n_rows": float(sum(len(member.rows) for member in members)),
        "rollout/accepted": float(len(members) - len(drops)),
        "rollout/rejected": float(len(drops)),
    }
    if rewards:
        stats["rollout/reward"] = sum(rewards) / len(rewards)
    stats |= _by_domain(members)
    for reason, count in Counter(drops.values()).items():
        stats[f"rollout/dropped/{reason}"] = float(count)
    for version, count in version_tokens([row for member in members for row in member.rows]).items():
        stats[f"rollout/version_tokens/{version}"] = float(count)
    return stats


def _by_domain(members: Sequence[Member]) -> dict[str, float]:
    """Episodes and mean reward of each domain, where there are several."""
    rewards: dict[str, list[float]] = {}
    for member in members:
        if member.origin is not None:
            rewards.setdefault(member.origin[0], []).append(reward_of(member))
    if len(rewards) < 2:
        return {}
    counts = {f"rollout/n_episodes/{domain}": float(len(values)) for domain, values in rewards.items()}
    return counts | {f"rollout/reward/{domain}": sum(values) / len(values) for domain, values in rewards.items()}
