"""``frontdesk train`` and ``frontdesk up`` with stand-ins for the services: the real launcher and command line, other programs to start."""

import dataclasses
import sys
from pathlib import Path

from services.common.config import ExperimentConfig
from services.launcher import cli, launch
from services.launcher.plan import Plan, SetupStep, plan_for
from services.launcher.process import ProcessSpec

HERE = Path(__file__).parent


def standin_command(config: ExperimentConfig, config_file: Path, name: str) -> tuple[str, ...]:
    """The store and the trainer do something, the others only answer."""
    if name in ("trajectory_store", "trainer"):
        return (sys.executable, str(HERE / "standin.py"), name, "--config", str(config_file))
    port = getattr(config.services, name).port
    return (sys.executable, str(HERE / "standin_bare.py"), str(port), str(config_file))


def standin_plan(config: ExperimentConfig, config_file: Path, admin_key: str, with_trainer: bool) -> Plan:
    """The real plan with other commands."""
    plan = plan_for(config, config_file, admin_key, with_trainer)

    def replaced(spec: ProcessSpec) -> ProcessSpec:
        if spec.name == "redis":
            return spec
        return dataclasses.replace(spec, command=standin_command(config, config_file, spec.name))

    marker = config_file.with_name("set_up")
    setup = () if marker.exists() else (SetupStep("model", (sys.executable, "-c", f"open({str(marker)!r}, 'x')")),)
    return dataclasses.replace(plan, setup=setup, waves=tuple(tuple(replaced(spec) for spec in wave) for wave in plan.waves))


async def train(config: ExperimentConfig, console: cli.Console) -> None:
    await launch.train(config, console, standin_plan)


async def up(config: ExperimentConfig, console: cli.Console, *, with_trainer: bool) -> None:
    await launch.up(config, console, with_trainer=with_trainer, make_plan=standin_plan)


if __name__ == "__main__":
    cli.train, cli.up = train, up
    sys.exit(cli.main())
