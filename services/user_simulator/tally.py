"""Owns counting: how many turns this process has answered, with which label, and how often the model had to be asked again."""

from collections import Counter
from dataclasses import dataclass, field

from services.common.wire.users import Fault, FaultsReply


@dataclass(slots=True)
class Tally:
    """Counts since the start."""

    turns: Counter[Fault] = field(default_factory=Counter[Fault])
    first_samples: Counter[Fault] = field(default_factory=Counter[Fault])
    resampled: int = 0
    retries: int = 0

    def report(self) -> FaultsReply:
        """The counts, and each label's share of all turns."""
        total = self.turns.total()
        return FaultsReply(
            turns=total,
            counts=dict(self.turns),
            rates={fault: count / total for fault, count in self.turns.items()},
            first_samples=dict(self.first_samples),
            resampled=self.resampled,
            retries=self.retries,
        )
