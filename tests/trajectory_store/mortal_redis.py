"""A Redis for chaos runs: it dies by kill -9, and where its log is synced once a second it also loses its power."""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from store_helpers import RedisServer

POWER_CUT_S = 1.0
"""What ``everysec`` may lose."""
LOOK_EVERY_S = 0.05
SIZES_KEPT = 200


class MortalRedis(RedisServer):
    """While it is open a thread notes how long its append-only file was and when, so that a power cut can take the last second off it."""

    def __init__(self, folder: Path, fsync: str) -> None:
        super().__init__(folder, "--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0")
        self.fsync = fsync
        self.power_cuts: list[float] = []
        self._sizes: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def die_and_return(self, *, cut: bool) -> bool:
        """kill -9 and a start on the same port and data; with ``cut`` the log is as a power cut leaves it. True where it was cut."""
        self.kill()
        at = time.time()
        synced = [size for when, size in self._sizes if when < at - POWER_CUT_S]
        cut = cut and self.fsync == "everysec" and bool(synced)
        if cut:
            os.truncate(aof(self.folder), synced[-1])
            self.power_cuts.append(at)
        self._sizes.clear()
        self.start()
        return cut

    def explains(self, at: float) -> bool:
        """Whether something that was acknowledged at ``at`` may be gone."""
        return any(0 <= cut - at <= 2 * POWER_CUT_S for cut in self.power_cuts)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self._sizes.append((time.time(), aof(self.folder).stat().st_size))
            except (OSError, ValueError):
                continue
            del self._sizes[:-SIZES_KEPT]

    def __enter__(self) -> Self:
        super().__enter__()
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._watcher.join()
        super().__exit__(kind, error, tb)


def aof(folder: Path) -> Path:
    """The file that grows: Redis 7 splits the log."""
    return max(folder.rglob("*.aof"), key=lambda path: (".incr." in path.name, path.stat().st_mtime))
