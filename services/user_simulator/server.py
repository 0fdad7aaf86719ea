"""Owns the model server that the user simulator wraps: start it, wait until it is ready, start it again when it dies or hangs, stop it.

The server leads a process group of its own and is tied to this process: however the user simulator ends, the server's GPUs are free again.
Refuses to know what it runs: a command, a URL that answers when it is ready, and a log file are all it needs.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from services.common.config.services import WrappedServerConfig
from services.user_simulator.server_states import Event, Restarts, State, advance

log = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[bool]]
"""Whether the server is ready now. Returns within seconds and raises nothing."""


class WrappedServer:
    """One supervised model server. `run` keeps it going until it is cancelled, which stops the server, or until it gives up."""

    def __init__(self, config: WrappedServerConfig, log_file: Path, probe: Probe) -> None:
        restart = config.restart
        self.state = State.STOPPED
        self.restarts = Restarts(restart.max, restart.backoff_s, restart.backoff_max_s, restart.reset_after_s)
        self._config = config
        self._log_file = log_file
        self._probe = probe
        self._last_end = ""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    def readiness(self) -> str:
        """ "ok", or the state with the reason and where to read more."""
        if self.state is State.READY:
            return "ok"
        return f"{self.state}: {self._last_end}, see {self._log_file}" if self._last_end else str(self.state)

    async def run(self) -> None:
        """Keeps the server running. A cancellation stops it: SIGTERM, and SIGKILL after ``stop_timeout_s``."""
        try:
            while await self._live_once():
                pass
        finally:
            await self._stop()

    async def _live_once(self) -> bool:
        """One life of the server and the wait after it. False where there will be no other."""
        self._advance(Event.START)
        started = time.monotonic()
        try:
            self._process = await self._spawn()
            self._last_end = await self._watch(self._process)
        except OSError as error:
            self._last_end = f"could not be started: {error}"
        self._kill_group(signal.SIGKILL)
        self._process = None
        self._advance(Event.DIED)
        delay = self.restarts.after_death(time.monotonic() - started)
        if delay is None:
            self._advance(Event.EXHAUSTED)
            log.error("the model server %s; %d restarts in a row did not help: given up", self._last_end, self.restarts.limit)
            return False
        log.warning("the model server %s, starting it again in %.1f s", self._last_end, delay)
        await asyncio.sleep(delay)
        return True

    async def _spawn(self) -> asyncio.subprocess.Process:
        tether = (sys.executable, "-P", "-m", "services.common.tether", str(os.getpid()))
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *tether, *self._config.command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    async def _watch(self, process: asyncio.subprocess.Process) -> str:
        """Returns when the process is gone, with what happened to it."""
        last_answer = time.monotonic()
        while True:
            with suppress(TimeoutError):
                return described(await asyncio.wait_for(process.wait(), self._config.probe_every_s))
            # A process that died during the probe cannot have answered it: somebody else listens at that address.
            if await self._probe() and process.returncode is None:
                last_answer = time.monotonic()
                if self.state is State.STARTING:
                    self._advance(Event.ANSWERED)
                continue
            limit = self._config.start_timeout_s if self.state is State.STARTING else self._config.hang_s
            if time.monotonic() - last_answer >= limit:
                self._kill_group(signal.SIGKILL)
                await process.wait()
                return f"did not answer {self._config.ready_url} for {limit:g} s"

    async def _stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._kill_group(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._config.stop_timeout_s)
        self._kill_group(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        if self.state is not State.GIVEN_UP:
            self._advance(Event.STOP)

    def _kill_group(self, number: signal.Signals) -> None:
        """Signals the server and everything it started, such as its schedulers. A group that is gone is not an error."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _advance(self, event: Event) -> None:
        self.state = advance(self.state, event)
        log.info("model server: %s", self.state)


def described(code: int) -> str:
    """An exit status in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
