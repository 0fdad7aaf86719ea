"""Owns writing metrics: one line a step in the trial's ``metrics.jsonl``, in the store, and in the memory of this process for `/v1`.

A step whose line was written is not written again; should a crash fall between store and file, the store has the line twice, and
readers take the last line of a step.
"""

import logging
import math
import time
from pathlib import Path

import msgspec

from services.common.wire.store import MetricsRecord
from services.trainer.state import Report
from services.trainer.store_client import StoreClient

log = logging.getLogger(__name__)


class Recorder:
    """The metrics of one trial."""

    def __init__(self, file: Path, store: StoreClient) -> None:
        self._file = file
        self._store = store
        self._lines = {(line.phase, line.step): line for line in _read(file)}

    def lines(self, phase: str) -> list[Report]:
        """The lines of a phase by step."""
        return sorted((line for line in self._lines.values() if line.phase == phase), key=lambda line: line.step)

    @property
    def last(self) -> Report | None:
        """The line written last."""
        return next(reversed(self._lines.values()), None)

    async def write(self, report: Report) -> None:
        """Writes one line, unless that step has one. Values that are not finite are left out and counted in ``nonfinite``."""
        key = (report.phase, report.step)
        if key in self._lines:
            return
        finite = {name: value for name, value in report.values.items() if math.isfinite(value)}
        if len(finite) < len(report.values):
            log.warning(
                "step %d of %s has values that are not finite: %s", report.step, report.phase, sorted(report.values.keys() - finite)
            )
            finite["nonfinite"] = float(len(report.values) - len(finite))
        line = Report(step=report.step, phase=report.phase, values=finite, at=report.at or time.time())
        await self._store.append_metrics(MetricsRecord(step=line.step, values=line.values, phase=line.phase, at=line.at))
        self._append(msgspec.json.encode(line) + b"\n")
        self._lines[key] = line

    def _append(self, line: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab+") as out:
            if out.tell():
                out.seek(-1, 2)
                # A kill may have cut the last line short; the new one must not continue it.
                line = line if out.read(1) == b"\n" else b"\n" + line
            out.write(line)


def _read(file: Path) -> list[Report]:
    """The lines of an earlier process. A last line that a kill cut short is passed over."""
    if not file.exists():
        return []
    lines: list[Report] = []
    for raw in file.read_bytes().splitlines():
        try:
            lines.append(msgspec.json.decode(raw, type=Report))
        except msgspec.MsgspecError:
            log.warning("%s: a line cannot be read and is passed over", file)
    return lines
