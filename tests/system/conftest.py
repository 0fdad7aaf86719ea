"""A trial of the smoke config on free ports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from system_trial import SERVICES, Trial, free_ports


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    names = (*SERVICES, "redis")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    overrides = [f"cluster.fileroot={tmp_path / 'runs'}", f"services.trajectory_store.redis_port={ports['redis']}"]
    overrides += [f"services.{name}.port={ports[name]}" for name in SERVICES]
    trial = Trial(tmp_path / "runs" / "smoke" / "trial0", overrides, ports)
    yield trial
    for launcher in trial.launchers:
        launcher.kill()  # what it started dies with it
        launcher.wait()
