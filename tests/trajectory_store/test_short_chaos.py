"""A short run of chaos.py; ``python tests/trajectory_store/chaos.py --minutes 10`` is the long one."""

from pathlib import Path

import chaos
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_nothing_is_lost_or_trained_twice_while_everything_is_killed(tmp_path: Path, fsync: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "PAUSE_S", (0.2, 0.8))
    report = chaos.run(tmp_path, seconds=6, fsync=fsync, seed=1)
    assert report["balanced"]
    assert report["episodes"] > 0
