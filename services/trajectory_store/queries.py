"""Owns what a listing keeps: filters over trajectory heads, and the search in messages. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Filters:
    """What a listing keeps; None keeps everything."""

    kind: str | None = None
    group_id: str | None = None
    task_id: str | None = None
    status: str | None = None
    version: int | None = None
    """A policy version that answered in the episode."""
    min_reward: float | None = None
    max_reward: float | None = None
    """Both inclusive; an episode without a reward passes neither."""
    text: str | None = None
    """Part of the messages, in any case."""

    def keeps(self, head: Mapping[str, Any]) -> bool:
        """Whether a trajectory head passes everything but the text."""
        pairs = (
            (self.kind, head["kind"]),
            (self.group_id, head["group_id"]),
            (self.task_id, head["task"]["task_id"]),
            (self.status, head["status"]),
        )
        if any(wanted is not None and wanted != value for wanted, value in pairs):
            return False
        if self.version is not None and self.version not in head["policy_versions"]:
            return False
        return self._reward_fits(head["reward"])

    def _reward_fits(self, reward: float | None) -> bool:
        if self.min_reward is None and self.max_reward is None:
            return True
        if reward is None:
            return False
        return (self.min_reward is None or reward >= self.min_reward) and (self.max_reward is None or reward <= self.max_reward)

    def found_in(self, messages: bytes) -> bool:
        """Whether the text is somewhere in the messages, given as JSON."""
        if self.text is None:
            return True
        # As JSON writes it, so that quotes and line breaks in the text are found too.
        wanted = orjson.dumps(self.text)[1:-1].decode()
        return wanted.casefold() in messages.decode().casefold()
