"""Owns what a call is worth: its return, the rewards that it and what followed it on its branch have earned, discounted.

AReaL takes a session's calls as one line in time: ``G_i = r_i + discount * G_(i+1)``. Here "what followed" is what the token tree says:
``G_i = r_i + discount * (sum of G_c over the calls c that extend i)``, so that a sub-agent's reward does not reach the calls of another
conversation. On a session that is one chain the two are the same. A reward that everything up to a call has earned (`Reward.whole`, or one
of the session) reaches every call until then, on every branch: ``discount ** n`` of it, n being how many calls followed on the way to the
newest one that extends it. Pure functions; refuses to know where rewards come from.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.common.wire.sessions import Reward


class Node(Protocol):
    """A call in the token tree."""

    @property
    def call_id(self) -> str: ...

    @property
    def parent(self) -> str | None: ...


def returns(calls: Sequence[Node], rewards: Sequence[Reward], discount: float) -> dict[str, float]:
    """The return of each call.

    ``calls`` in the order of their ordinals, parents before children; rewards of one call under several names are added; rewards of calls
    that are not there, and those without a value, count nothing.
    """
    position = {call.call_id: index for index, call in enumerate(calls)}
    parents = [position.get(call.parent or "") for call in calls]
    total = [0.0] * len(calls)
    for reward in rewards:
        if reward.value is None:
            continue
        end = len(calls) - 1 if reward.call_id is None else position.get(reward.call_id)
        if end is not None and (reward.whole or reward.call_id is None):
            for index, distance in enumerate(_followed_by(parents[: end + 1])):
                total[index] += reward.value * discount**distance
        elif end is not None:
            for index, distance in _upwards(parents, end):
                total[index] += reward.value * discount**distance
    return {call.call_id: value for call, value in zip(calls, total, strict=True)}


def leaves(calls: Sequence[Node]) -> set[str]:
    """The calls that no other call extends."""
    return {call.call_id for call in calls} - {call.parent for call in calls if call.parent is not None}


def without_orphans(calls: Sequence[Node], prompts: Mapping[str, bytes]) -> set[str]:
    """The calls that stay when those that an agent made twice are kept once.

    ``prompts`` holds the new prompt tokens of each call. Of calls after the same tokens those that were extended stay, or else the last
    one: it is the one whose answer the agent went on with.
    """
    ends = leaves(calls)
    same: dict[tuple[str | None, bytes], list[str]] = {}
    for call in calls:
        same.setdefault((call.parent, prompts[call.call_id]), []).append(call.call_id)
    kept: set[str] = set()
    for group in same.values():
        kept.update([call_id for call_id in group if call_id not in ends] or group[-1:])
    return kept


def _upwards(parents: Sequence[int | None], start: int) -> list[tuple[int, int]]:
    """(position, distance) of a call and of everything it extends."""
    found: list[tuple[int, int]] = []
    index: int | None = start
    while index is not None:
        found.append((index, len(found)))
        index = parents[index]
    return found


def _followed_by(parents: Sequence[int | None]) -> list[int]:
    """For each call, how many calls lie between it and the newest one that extends it, that one included; 0 for a leaf."""
    newest = list(range(len(parents)))
    distance = [0] * len(parents)
    for index in reversed(range(len(parents))):
        parent = parents[index]
        if parent is not None and newest[index] > newest[parent]:
            newest[parent], distance[parent] = newest[index], distance[index] + 1
    return distance
