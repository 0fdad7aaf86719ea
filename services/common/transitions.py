"""Owns the step of a state machine that is a table: (state, event) -> state. The tables belong to whoever has the states."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

StateT = TypeVar("StateT", bound=StrEnum)
EventT = TypeVar("EventT", bound=StrEnum)


class IllegalTransition(RuntimeError):
    """An event that cannot happen in this state; always our own fault."""


def following(table: Mapping[tuple[StateT, EventT], StateT], state: StateT, event: EventT) -> StateT:
    """The state after ``event``. Raises `IllegalTransition` for a pair that is not in the table."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None
