"""Real processes under supervision: restarted when killed or hung, given up with their log, stopped in order, never left behind."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.launcher.lifecycle import RestartPolicy, State
from services.launcher.process import ProcessSpec
from services.launcher.supervisor import LaunchFailed, Supervisor, run_once

MakeSpec = Callable[..., ProcessSpec]


async def until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def exists(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def answers() -> bool:
    return True


async def never() -> bool:
    return False


def script(tmp_path: Path, name: str, code: str, **changes: object) -> ProcessSpec:
    """A spec of a Python one-liner that counts as healthy as soon as it is probed."""
    spec = ProcessSpec(name, (sys.executable, "-c", code), os.environ, tmp_path / f"{name}.log", answers)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


async def test_killed_process_is_restarted(standin_spec: MakeSpec) -> None:
    notes: list[str] = []
    async with Supervisor(notes.append) as supervisor:
        await supervisor.start([standin_spec()])
        first = supervisor.pids()["policy_server"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.restarts() == {"policy_server": 1} and supervisor.states()["policy_server"] is State.HEALTHY)
        second = supervisor.pids()["policy_server"]
    assert first != second
    assert not exists(first) and not exists(second)
    assert notes == ["policy_server was killed by SIGKILL, starting it again in 0.2 s"]


async def test_hung_process_is_restarted(standin_spec: MakeSpec, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.launcher.probes.PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("services.launcher.process.PROBE_HEALTHY_S", 0.05)
    notes: list[str] = []
    spec = standin_spec(hang_s=1.0)
    async with Supervisor(notes.append) as supervisor:
        await supervisor.start([spec])
        async with ServiceClient("policy_server", f"http://127.0.0.1:{free_port}", timeout_s=0.3) as client:
            with pytest.raises(RemoteError):
                await client.post("/block")
        await until(lambda: bool(supervisor.restarts()) and supervisor.states()["policy_server"] is State.HEALTHY)
    assert notes == ["policy_server did not answer for 1 s, starting it again in 0.2 s"]


async def test_process_that_never_answers_is_given_up_with_its_log(tmp_path: Path) -> None:
    spec = script(tmp_path, "mute", "print('I am here', flush=True); import time; time.sleep(60)", probe=never, start_deadline_s=0.5)
    async with Supervisor(lambda _: None) as supervisor:
        with pytest.raises(LaunchFailed, match=r"(?s)mute did not answer within 0.5 s of its start.*given up.*I am here"):
            await supervisor.start([spec])


async def test_process_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    spec = script(tmp_path, "weak", "import time; time.sleep(0.4); raise SystemExit('no memory left')")
    async with Supervisor(lambda _: None, RestartPolicy(first_delay_s=0.01, limit=3)) as supervisor:
        await supervisor.start([spec])
        await until(lambda: supervisor.states()["weak"] is State.STOPPED)
        with pytest.raises(LaunchFailed, match=r"(?s)weak exited with status 1, 3 deaths in 120 s: given up.*no memory left"):
            supervisor.check()


async def test_stopped_last_started_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\ndef end(*_):\n    open({file!r}, 'a').write({name!r}); sys.exit()\n"
        "signal.signal(15, end); print('up', flush=True); time.sleep(60)"
    )
    specs = [script(tmp_path, name, code.format(file=str(order), name=name)) for name in "abc"]
    async with Supervisor(lambda _: None) as supervisor:
        for spec in specs:
            await supervisor.start([spec])
            await until(lambda spec=spec: "up" in spec.log.read_text())
    assert order.read_text() == "cba"


async def test_deaf_process_is_killed_with_its_helpers(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(15, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\nprint(child.pid, flush=True); time.sleep(60)"
    )
    spec = script(tmp_path, "deaf", code, grace_s=0.3)
    async with Supervisor(lambda _: None) as supervisor:
        await supervisor.start([spec])
        await until(lambda: spec.log.read_text().strip().isdigit())
        pids = [supervisor.pids()["deaf"], int(spec.log.read_text())]
        assert all(exists(pid) for pid in pids)
    await until(lambda: not any(exists(pid) for pid in pids))


async def test_interrupted_stop_kills_what_is_left(tmp_path: Path) -> None:
    spec = script(
        tmp_path, "deaf", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)", grace_s=60
    )
    supervisor = Supervisor(lambda _: None)
    await supervisor.start([spec])
    await until(lambda: "up" in spec.log.read_text())
    pid = supervisor.pids()["deaf"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(supervisor.stop(), 0.2)
    await until(lambda: not exists(pid))


async def test_failed_set_up_shows_its_log(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such split')")
    with pytest.raises(LaunchFailed, match=r"(?s)corpus exited with status 1.*no such split"):
        await run_once("corpus", command, os.environ, tmp_path / "corpus.log", 20)


async def test_slow_set_up_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LaunchFailed, match=r"corpus took over 0.3 s"):
        await run_once("corpus", (sys.executable, "-c", "import time; time.sleep(60)"), os.environ, tmp_path / "corpus.log", 0.3)
    assert time.monotonic() - started < 20


async def test_no_orphans_when_the_launcher_is_killed(tmp_path: Path) -> None:
    parent = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom services.launcher.process import spawn\n"
        "async def main():\n"
        f"    child = await spawn((sys.executable, '-c', 'import time; time.sleep(60)'), os.environ, Path({str(tmp_path / 'log')!r}))\n"
        "    print(child.pid, flush=True)\n    await asyncio.sleep(60)\nasyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as launcher:  # noqa: ASYNC220
        assert launcher.stdout
        child = int(launcher.stdout.readline())
        command = Path(f"/proc/{child}/cmdline")
        await until(lambda: b"tether" not in command.read_bytes())
        launcher.kill()
    await until(lambda: not exists(child))
