"""Owns removing what was handed off long ago: by age, by number of trajectories, by bytes. Refuses to remove what nobody consumed yet."""

from dataclasses import dataclass
from typing import cast

import orjson

from services.common.config.services import StoreService
from services.trajectory_store.redis_store.database import Database
from services.trajectory_store.spill import Bodies

RETIRED_AT_ONCE = 256
"""Episodes; Redis does nothing else meanwhile."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept; None keeps everything."""

    age_s: float | None = None
    trajectories: int | None = None
    n_bytes: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return (self.age_s, self.trajectories, self.n_bytes) != (None, None, None)


def limits_of(settings: StoreService) -> Limits:
    """The limits of a configured store."""
    megabytes = settings.retain_mb
    return Limits(settings.retain_age_s, settings.retain_trajectories, None if megabytes is None else megabytes * 2**20)


class Retention:
    """Retires whole groups, and ad-hoc episodes, oldest first."""

    def __init__(self, database: Database, bodies: Bodies, limits: Limits) -> None:
        self._database = database
        self._bodies = bodies
        self._limits = limits

    async def retire(self) -> int:
        """Removes what is over the limits, a bounded number at once; returns how many episodes that were."""
        if not self._limits.any:
            return 0
        before: float | str = ""
        if self._limits.age_s is not None:
            now, micros = await self._database.command("TIME")
            before = int(now) + int(micros) / 1e6 - self._limits.age_s
        wanted = (self._limits.trajectories, self._limits.n_bytes)
        numbers = ["" if limit is None else limit for limit in wanted]
        retired, spilled = await self._database.run("retire", before, *numbers, RETIRED_AT_ONCE)
        for names in spilled:
            await self._bodies.delete(cast("list[str]", orjson.loads(names)))
        return retired
