"""Owns one supervised process: start it, ask whether it answers, start it again when it dies, stop it.

Each process leads a process group of its own, so that a Ctrl-C in the terminal reaches the launcher alone and a stop reaches helpers
that the process started. Refuses to know what the process is: a command, a log file and a probe are all it needs.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.launcher.lifecycle import Deaths, Event, RestartPolicy, State, advance

Probe = Callable[[], Awaitable[bool]]
"""Whether the process answers now. Returns within a few seconds and raises nothing."""

Report = Callable[[str], None]
"""Takes one line for the person at the terminal."""

PROBE_STARTING_S = 0.1
PROBE_HEALTHY_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run and how to tell that it runs. Seconds."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    probe: Probe
    start_deadline_s: float = 180.0
    """From spawn to the first answer."""
    hang_s: float = 60.0
    """Without an answer for this long, a healthy process counts as hung."""
    hang_probes: int = 3
    """… and this many probes failed in a row: a launcher that was itself suspended must not blame the others."""
    grace_s: float = 15.0
    """From SIGTERM to SIGKILL."""


async def spawn(command: tuple[str, ...], env: Mapping[str, str], log: Path) -> asyncio.subprocess.Process:
    """Starts ``command`` in its own process group, tied to this process's life, output appended to ``log``."""
    tether = (sys.executable, "-P", "-m", "services.common.tether", str(os.getpid()))
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *tether, *command, env=dict(env), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals the process and everything it started. A group that is gone is not an error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def terminate(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """SIGTERM, after ``grace_s`` seconds SIGKILL; returns when the process is gone."""
    try:
        signal_group(process, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace_s)
    finally:
        signal_group(process, signal.SIGKILL)
    await process.wait()


def describe_exit(code: int) -> str:
    """An exit status in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


class ManagedProcess:
    """One process under supervision. `run` returns when it was stopped or given up."""

    def __init__(self, spec: ProcessSpec, policy: RestartPolicy, report: Report) -> None:
        self.spec = spec
        self.state = State.STOPPED
        self.restarts = 0
        self.failure: str | None = None
        """Why it was given up."""
        self.settled = asyncio.Event()
        """Set when it is healthy for the first time, or given up."""
        self._deaths = Deaths(policy)
        self._report = report
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._was_healthy = False

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def run(self) -> None:
        """Keeps the process running."""
        try:
            while not self._stopping.is_set():
                reason = await self._live()
                if self._stopping.is_set() or not await self._back_off(reason):
                    return
                self.restarts += 1
        except OSError as error:
            self.failure = f"{self.spec.name} could not be started: {error}"
        finally:
            self.kill()
            self._finished.set()
            self.settled.set()

    async def stop(self) -> None:
        """Stops it for good and waits until it is gone. Idempotent."""
        self._stopping.set()
        self._advance(Event.STOP)
        if self._process is not None and self._process.returncode is None:
            await terminate(self._process, self.spec.grace_s)
        await self._finished.wait()

    def kill(self) -> None:
        """SIGKILL at once, without waiting."""
        if self._process is not None:
            signal_group(self._process, signal.SIGKILL)

    async def _live(self) -> str:
        """Spawns and watches the process until it is gone; returns what happened to it."""
        self._process = await spawn(self.spec.command, self.spec.env, self.spec.log)
        if self._stopping.is_set():
            await terminate(self._process, self.spec.grace_s)
            return "stopped"
        self._advance(Event.SPAWNED)
        reason = await self._watch(self._process)
        # What the dead process had started would keep its ports and files.
        signal_group(self._process, signal.SIGKILL)
        return reason

    async def _watch(self, process: asyncio.subprocess.Process) -> str:
        last_answer, failures = time.monotonic(), 0
        while True:
            pause = PROBE_STARTING_S if self.state is State.STARTING else PROBE_HEALTHY_S
            with suppress(TimeoutError):
                return describe_exit(await asyncio.wait_for(process.wait(), pause))
            if await self.spec.probe():
                last_answer, failures = time.monotonic(), 0
                self._answered(process)
                continue
            failures += 1
            if hung := self._hung(time.monotonic() - last_answer, failures):
                signal_group(process, signal.SIGKILL)
                await process.wait()
                return hung

    def _answered(self, process: asyncio.subprocess.Process) -> None:
        # A process that is gone cannot have answered: somebody else listens on its port.
        if self.state is State.STARTING and process.returncode is None:
            self._advance(Event.ANSWERED)
            self._was_healthy = True
            self.settled.set()

    def _hung(self, silent_s: float, failures: int) -> str | None:
        starting = self.state is State.STARTING
        limit = self.spec.start_deadline_s if starting else self.spec.hang_s
        if silent_s < limit or failures < self.spec.hang_probes:
            return None
        return f"did not answer within {limit:g} s of its start" if starting else f"did not answer for {limit:g} s"

    async def _back_off(self, reason: str) -> bool:
        """Waits before the next start. False where there will be none."""
        self._advance(Event.EXITED)
        delay = self._deaths.record(time.monotonic(), was_healthy=self._was_healthy)
        if delay is None:
            self._advance(Event.GAVE_UP)
            self.failure = f"{self.spec.name} {reason}, {len(self._deaths.times)} deaths in {self._deaths.policy.window_s:g} s: given up"
            return False
        self._advance(Event.RETRY)
        self._report(f"{self.spec.name} {reason}, starting it again in {delay:.1f} s")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay)
        return not self._stopping.is_set()

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)
