"""Owns writing dumps as trajectories become final. Its cursor is in Redis, so a restart neither skips nor rewrites."""

import asyncio
import logging
from pathlib import Path

from services.common.config import ExperimentConfig
from services.common.errors import NotFound
from services.common.wire.rollouts import Trajectory
from services.trajectory_store import dumps
from services.trajectory_store.queries import Filters
from services.trajectory_store.store import Store
from services.trajectory_store.tenants import Tenants

log = logging.getLogger(__name__)

PAGE = 50
IDLE_S = 1.0
CURSOR = "dump_cursor"


class Dumper:
    """Writes json and txt below ``{fileroot}/generated`` (evaluation: ``generated-eval``)."""

    def __init__(self, config: ExperimentConfig, tenants: Tenants) -> None:
        self._root = Path(config.cluster.fileroot)
        self._tenants = tenants

    async def keep_dumping(self) -> None:
        """Follows the order of completion, for ever."""
        while True:
            written = [await self.dump_some(store) for store in self._tenants.stores]
            if not any(written):
                await asyncio.sleep(IDLE_S)

    async def dump_some(self, store: Store) -> int:
        """Writes what became final since the cursor, at most one page; returns how many."""
        cursor = await store.experiment.number(CURSOR)
        page = await store.trajectories.page(cursor, PAGE, Filters())
        for head in page.items:
            try:
                trajectory = Trajectory.model_validate(await store.trajectories.get(head["episode_id"]))
                calls = await store.sessions.calls(trajectory.session_id) if trajectory.session_id else []
            except NotFound as error:
                log.info("not dumped: %s", error.detail)
                continue
            await asyncio.to_thread(write_dump, self._root, store.trial, trajectory, calls)
        if page.cursor != cursor:
            await store.experiment.set_number(CURSOR, page.cursor)
        return len(page.items)


def write_dump(root: Path, trial: str, trajectory: Trajectory, calls: list[bytes]) -> Path:
    """Writes one trajectory as ``.json`` and ``.txt``; returns the path of the first."""
    experiment, _, name = trial.partition("/")
    stem = root / dumps.file_stem(experiment, name, trajectory)
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(stem.name + ".json")
    path.write_bytes(dumps.to_json(trajectory, calls))
    path.with_suffix(".txt").write_text(dumps.to_text(trajectory), encoding="utf-8")
    return path
