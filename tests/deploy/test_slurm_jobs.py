"""The job scripts are sound, and on a real one-node cluster they bring an experiment to its end."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from deploy_ports import free_ports

from services.common.config import ServiceName

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "slurm"
SCRIPTS = [*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch"), *Path(__file__).parent.glob("*.sh"), ROOT / ".ci" / "run"]
SERVICES = get_args(ServiceName)
QUICK = ["sft.enabled=false", "evaluator.before=false", "evaluator.after=false", "total_train_steps=2"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([program, "-x", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stdout


def test_one_job_script_a_service() -> None:
    assert {path.stem for path in FOLDER.glob("*.sbatch")} == {*SERVICES, "redis", "setup"}


def slurm_states(env: dict[str, str]) -> dict[str, str]:
    out = subprocess.run(
        ["squeue", "-h", "-t", "all", "-o", "%j %T"], env=env, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return {name.removeprefix("frontdesk-"): state for name, state in (line.split() for line in out.splitlines())}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stack_runs_on_one_node(slurm: dict[str, str], tmp_path: Path) -> None:
    *ports, redis = free_ports(len(SERVICES) + 1)
    overrides = [f"services.{name}.port={port}" for name, port in zip(SERVICES, ports, strict=True)]
    overrides += [f"services.trajectory_store.redis_port={redis}", f"cluster.fileroot={tmp_path}", *QUICK]
    env = slurm | {"FRONTDESK_PYTHON": sys.executable, "FRONTDESK_ADVERTISE_HOST": "127.0.0.1"}
    env.pop("FRONTDESK_ADMIN_KEY", None)
    submit = [FOLDER / "submit.sh", ROOT / "configs" / "smoke_cpu.yaml", *overrides]
    submitted = subprocess.run(submit, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert submitted.returncode == 0, submitted.stderr
    trial = tmp_path / "smoke" / "trial0"

    give_up_at = time.monotonic() + 1200
    while slurm_states(env)["trainer"] in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < give_up_at, slurm_states(env)
        time.sleep(1)
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted((trial / "logs").iterdir()))
    assert slurm_states(env)["trainer"] == "COMPLETED", logs
    assert (trial / "results.json").exists(), logs
    log = (trial / "logs" / "trainer.log").read_text()
    assert "experiment: done" in log and f"results: {trial}/results.json" in log
    assert {path.name for path in (trial / "endpoints").iterdir()} == {*SERVICES, "redis"}
    while set(slurm_states(env).values()) & {"RUNNING", "COMPLETING", "PENDING"}:
        assert time.monotonic() < give_up_at, slurm_states(env)
        time.sleep(0.5)
    assert slurm_states(env)["setup"] == "COMPLETED"
