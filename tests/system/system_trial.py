"""The real command with the smoke config on free ports, and a look at the processes it started."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "configs" / "smoke_cpu.yaml"
SERVICES = ("trajectory_store", "policy_server", "policy_proxy", "user_simulator", "agent_runner", "trainer")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = 600.0) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at, f"it did not happen within {deadline_s:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Trial:
    """One trial of the smoke config."""

    directory: Path
    overrides: list[str]
    ports: dict[str, int]
    launchers: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *more: str) -> "subprocess.Popen[str]":
        clean = {key: value for key, value in os.environ.items() if key not in ("REDIS_URL", "FRONTDESK_ADMIN_KEY")}
        command = [sys.executable, "-m", "services.launcher", "train", "--config", str(CONFIG), *self.overrides, *more]
        # To a file: a pipe that nobody reads fills up and stops the launcher.
        with self.output.open("a") as output:
            process = subprocess.Popen(command, env=clean, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.launchers.append(process)
        return process

    @property
    def output(self) -> Path:
        """What the launcher said, over all starts."""
        return self.directory.parents[2] / "launcher.out"

    def last_line(self) -> str:
        return self.output.read_text().splitlines()[-1]

    def results(self) -> dict[str, Any]:
        return json.loads((self.directory / "results.json").read_text())

    def steps(self) -> int:
        """PPO steps that the trainer has reported."""
        file = self.directory / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return max((json.loads(line)["step"] for line in lines if '"phase":"rl"' in line), default=0)

    def processes(self) -> dict[int, str]:
        """Command lines by pid of what runs for this trial, the launcher left out. Redis renames itself; its folder tells."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().decode().replace("\0", " ") if entry.name.isdigit() else ""
                if "services.launcher" not in command and command and str(self.directory) in command + os.readlink(entry / "cwd"):
                    found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def pid_of(self, name: str) -> int | None:
        wanted = "redis-server" if name == "redis" else f"-m services.{name} "
        return next((pid for pid, command in self.processes().items() if wanted in command), None)

    def answers(self, name: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports[name]), timeout=5) as connection:
                connection.sendall(b"PING\r\n" if name == "redis" else b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return connection.recv(64).startswith((b"+PONG", b"HTTP/1.1 200"))
        except OSError:
            return False

    def assert_nothing_left(self) -> None:
        assert self.processes() == {}
        assert not any(self.answers(name) for name in self.ports)
