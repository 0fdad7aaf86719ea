"""A port that is taken stops the real command before it starts anything, and it says by whom and what to do."""

import os
import socket

from system_trial import Trial


def test_busy_port_names_holder_and_remedy(trial: Trial) -> None:
    with socket.create_server(("127.0.0.1", trial.ports["policy_proxy"])):
        assert trial.start().wait(timeout=60) == 2
    said = trial.output.read_text()
    assert f"port {trial.ports['policy_proxy']} for policy_proxy is in use by pid {os.getpid()} (" in said
    assert "services.policy_proxy.port=PORT" in said
    assert not (trial.directory / "config.yaml").exists()
    trial.assert_nothing_left()
