"""Owns bringing the engine up: waits for the folder of policy version 0, loads it, and says what it waits for."""

import asyncio
import logging
from pathlib import Path

from services.policy_server.engine import Engine
from services.policy_server.settings import EngineSettings

log = logging.getLogger(__name__)

POLL_S = 0.2
INITIAL_VERSION = "0"


class EngineLoader:
    """The engine of this process, once there is one."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        self.engine: Engine | None = None
        self.reason = f"waiting for {folder} (made at set-up, or set actor.path)"
        self._folder = folder
        self._settings = settings

    async def load(self) -> None:
        """Loads as soon as the folder is complete. A folder that cannot be read is tried again, in case it is still being written."""
        while self.engine is None:
            if (self._folder / "config.json").exists():
                try:
                    engine = await asyncio.to_thread(Engine, self._folder, self._settings, INITIAL_VERSION)
                except ValueError as error:
                    self._note(str(error))
                else:
                    engine.start()
                    self.engine = engine
                    log.info("serving version %s from %s", INITIAL_VERSION, self._folder)
                    return
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ends the engine."""
        if self.engine is not None:
            await asyncio.to_thread(self.engine.stop)

    async def readiness(self) -> dict[str, str]:
        """The policy is loaded, or why not."""
        return {"policy": "ok" if self.engine is not None else self.reason}

    def _note(self, reason: str) -> None:
        if reason != self.reason:
            log.warning("cannot load yet: %s", reason)
        self.reason = reason
