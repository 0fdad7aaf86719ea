"""Programs that these tests need and machines mostly lack: taken from PATH, else fetched where possible, else a skip that says why."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_ports import free_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frontdesk-tests"
SLURM_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The command that is Docker Compose v2."""
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / "docker-compose"
    with (CACHE / "compose.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            if not (shutil.which("apt-get") and shutil.which("dpkg")):
                pytest.skip("no docker compose v2 here, and no apt to fetch it with")
            made = subprocess.run([HERE / "compose_plugin.sh", CACHE], capture_output=True, text=True, timeout=300, check=False)
            if made.returncode != 0:
                pytest.skip(f"docker compose v2 could not be fetched: {made.stderr[-500:]}")
    return [str(program)]


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which SLURM commands reach a cluster of one node."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster of our own needs root")
    if not all(shutil.which(program) for program in SLURM_PROGRAMS):
        _install_slurm()
    # Not pytest's own folder: the path of a socket must be short.
    folder = tempfile.mkdtemp(prefix="fd-slurm-")
    controller, node = free_ports(2)
    up = subprocess.run(
        [HERE / "slurm_cluster.sh", "up", folder, str(controller), str(node)], capture_output=True, text=True, timeout=120, check=False
    )
    assert up.returncode == 0, up.stdout + up.stderr
    yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    subprocess.run([HERE / "slurm_cluster.sh", "down", folder], check=True, timeout=120)
    shutil.rmtree(folder, ignore_errors=True)


def _install_slurm() -> None:
    if not shutil.which("apt-get"):
        pytest.skip("no SLURM here, and no apt to install it with")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "slurm-wlm", "munge"]
    for command in (install, ["apt-get", "update", "-q"], install):
        result = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=600, check=False)
        if all(shutil.which(program) for program in SLURM_PROGRAMS):
            return
    pytest.skip(f"SLURM could not be installed: {result.stderr[-500:]}")
