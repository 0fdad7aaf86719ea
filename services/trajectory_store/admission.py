"""Owns how many bytes of request bodies are in memory at one time. Refuses what is too large, and what is too much together."""

from collections.abc import Generator
from contextlib import contextmanager

from services.common.errors import Busy, TooLarge


class BodyBudget:
    """Back-pressure by bytes: thousands of small bodies fit, a few large ones fill it."""

    def __init__(self, max_body: int, max_total: int) -> None:
        self.max_body = max_body
        self._max_total = max_total
        self._held = 0

    @contextmanager
    def hold(self) -> Generator["Held"]:
        """Room for one body, given back at the end."""
        held = self.open()
        try:
            yield held
        finally:
            held.clear()

    def open(self) -> "Held":
        """Room for what is read bit by bit; whoever opens it clears it."""
        return Held(self)

    def take(self, n_bytes: int) -> None:
        """Counts bytes that were read. Raises `Busy` where the budget is used up; a single body always fits an empty budget."""
        if self._held and self._held + n_bytes > self._max_total:
            raise Busy(f"bodies of {self._held >> 20} MiB are being read, come back", code="bodies_full", retry_after_s=1)
        self._held += n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Counts bytes that are not needed any more."""
        self._held -= n_bytes

    def check(self, n_bytes: int) -> None:
        """Raises `TooLarge` for a body of this size."""
        if n_bytes > self.max_body:
            raise TooLarge(f"the body is larger than {self.max_body >> 20} MiB (services.trajectory_store.max_body_mb)")


class Held:
    """The bytes of one body that were read so far."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size = 0

    def add(self, n_bytes: int) -> None:
        """Raises `TooLarge` or `Busy`."""
        self._budget.check(self.size + n_bytes)
        self._budget.take(n_bytes)
        self.size += n_bytes

    def clear(self) -> None:
        """Gives back what was read so far."""
        self._budget.give_back(self.size)
        self.size = 0
