"""Owns all processes of a launch together: start in order, notice when one is given up, stop in reverse order.

This is a supervisor boundary (docs/architecture.md). Refuses to leave a process behind: leaving the context stops them all, a second
interruption kills them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.background import Background
from services.launcher.lifecycle import RestartPolicy, State
from services.launcher.logtail import tail
from services.launcher.process import ManagedProcess, ProcessSpec, Report, describe_exit, spawn, terminate


class LaunchFailed(Exception):
    """A process cannot be kept running; the message carries the end of its log."""


class Supervisor:
    """An async context manager that owns the processes started in it."""

    def __init__(self, report: Report, policy: RestartPolicy | None = None) -> None:
        self._report = report
        self._policy = policy or RestartPolicy()
        self._background = Background()
        self._processes: dict[str, ManagedProcess] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.stop()

    async def start(self, wave: Sequence[ProcessSpec]) -> None:
        """Starts processes that do not need each other and waits until all of them answer. Raises `LaunchFailed`."""
        started = [self._launch(spec) for spec in wave]
        for process in started:
            await process.settled.wait()
            self.check()

    def check(self) -> None:
        """Raises `LaunchFailed` where a process was given up."""
        for process in self._processes.values():
            if process.failure:
                raise LaunchFailed(with_log(process.failure, process.spec.log))

    def states(self) -> Mapping[str, State]:
        """State by process name."""
        return {name: process.state for name, process in self._processes.items()}

    def restarts(self) -> dict[str, int]:
        """Restarts so far by process name, without those that had none."""
        return {name: process.restarts for name, process in self._processes.items() if process.restarts}

    def pids(self) -> dict[str, int]:
        """Process id by name, of those that run now."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def log_of(self, name: str) -> Path:
        """The log file of one process."""
        return self._processes[name].spec.log

    async def stop(self) -> None:
        """Stops everything, the last started first. A cancellation meanwhile kills what is left."""
        try:
            for process in reversed(self._processes.values()):
                await process.stop()
        finally:
            for process in self._processes.values():
                process.kill()
            await self._background.stop()

    def _launch(self, spec: ProcessSpec) -> ManagedProcess:
        process = ManagedProcess(spec, self._policy, self._report)
        self._processes[spec.name] = process
        self._background.start(spec.name, process.run)
        return process


async def run_once(name: str, command: tuple[str, ...], env: Mapping[str, str], log: Path, deadline_s: float) -> None:
    """Runs a set-up command to its end. Raises `LaunchFailed` with the end of its log where it fails or takes over ``deadline_s``."""
    process = await spawn(command, env, log)
    try:
        code = await asyncio.wait_for(process.wait(), deadline_s)
    except TimeoutError:
        raise LaunchFailed(with_log(f"{name} took over {deadline_s:g} s", log)) from None
    finally:
        if process.returncode is None:
            await terminate(process, grace_s=5.0)
    if code != 0:
        raise LaunchFailed(with_log(f"{name} {describe_exit(code)}", log))


def with_log(reason: str, log: Path) -> str:
    """``reason`` followed by the end of the log it is explained in."""
    return f"{reason}\n--- end of {log} ---\n{tail(log)}"
