"""Owns a launch from the first check to the last line: `train` runs an experiment to its end, `up` runs the services until told to stop.

Everything that was started is stopped again, whatever happens. Exceptions that leave here are meant for the person: `TrialError`,
`PreflightFailed`, `LaunchFailed`.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from services.common.config import ExperimentConfig, ServiceName
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.launcher import preflight
from services.launcher.display import Display, display_for
from services.launcher.files import read_json
from services.launcher.plan import SETUP_DEADLINE_S, Plan, PlanFactory, plan_for, service_names
from services.launcher.probes import http_probe
from services.launcher.progress import Snapshot, Watcher, rewards_by_step
from services.launcher.report import complete_results, draw, print_summary
from services.launcher.supervisor import LaunchFailed, Supervisor, run_once, with_log
from services.launcher.trial import Condition, Facts, Trial, open_trial

POLL_S = 1.0
SAVE_FACTS_EVERY_S = 10.0
READY_DEADLINE_S = 300.0


@dataclass(slots=True)
class Accounts:
    """Wall time and restarts of this launch on top of those of earlier launches of the trial."""

    trial: Trial
    supervisor: Supervisor
    before: Facts
    started_at: float
    """Monotonic clock."""
    saved_at: float = 0.0

    def facts(self) -> Facts:
        """All launches of the trial together."""
        restarts = dict(self.before.restarts)
        for name, count in self.supervisor.restarts().items():
            restarts[name] = restarts.get(name, 0) + count
        return Facts(wall_s=self.before.wall_s + time.monotonic() - self.started_at, restarts=restarts)

    def save(self) -> None:
        """Keeps them for the next launch."""
        self.saved_at = time.monotonic()
        self.trial.save_facts(self.facts())

    def save_now_and_then(self) -> None:
        """`save`, but not at every poll: a launcher that is killed loses a few seconds of its wall time at most."""
        if time.monotonic() - self.saved_at > SAVE_FACTS_EVERY_S:
            self.save()


async def train(config: ExperimentConfig, console: Console, make_plan: PlanFactory = plan_for) -> None:
    """Runs the experiment to its end; the last line on standard output is ``results: PATH``. A finished trial is only shown again."""
    started_at = time.monotonic()
    with open_trial(config) as trial:
        if trial.condition is Condition.FINISHED:
            console.print(f"the trial {trial.directory} is finished; for another run choose another trial_name", soft_wrap=True)
            print_summary(console, read_json(trial.results_file))
        else:
            preflight.check(config, with_trainer=True)
            _say_what_happens(trial, console)
            with display_for(console) as display:
                rewards, facts = await _run(trial, display, make_plan, started_at)
            results = complete_results(trial.results_file, facts, rewards)
            print_summary(console, results)
            plot = draw(results, rewards, f"{config.experiment_name}/{config.trial_name}", trial.directory)
            console.print(f"plot: {plot}\nlogs: {trial.directory / 'logs'}", soft_wrap=True)
        console.file.flush()
        sys.stdout.write(f"results: {trial.results_file}\n")
        sys.stdout.flush()


async def up(config: ExperimentConfig, console: Console, *, with_trainer: bool, make_plan: PlanFactory = plan_for) -> None:
    """Runs the services until this task is cancelled."""
    with open_trial(config) as trial:
        preflight.check(config, with_trainer=with_trainer)
        _say_what_happens(trial, console)
        with display_for(console) as display:
            async with _services(trial, display, make_plan, with_trainer=with_trainer) as supervisor:
                display.note("waiting until all of them are ready")
                await _until_ready(config, service_names(with_trainer=with_trainer), supervisor)
                for line in addresses(config, with_trainer=with_trainer):
                    display.note(line)
                while True:
                    supervisor.check()
                    await asyncio.sleep(POLL_S)


def addresses(config: ExperimentConfig, *, with_trainer: bool) -> list[str]:
    """Where the services are, a line each."""
    return [f"{name:16} {config.services.url(name)}" for name in service_names(with_trainer=with_trainer)]


async def _until_ready(config: ExperimentConfig, names: list[ServiceName], supervisor: Supervisor) -> None:
    """Waits until every service can serve. Raises `LaunchFailed` where one cannot within `READY_DEADLINE_S`."""
    give_up_at = time.monotonic() + READY_DEADLINE_S
    for name in names:
        endpoint = config.services.endpoint(name)
        ready = http_probe(endpoint.host, endpoint.port, "/readyz")
        while not await ready():
            supervisor.check()
            if time.monotonic() > give_up_at:
                raise LaunchFailed(with_log(f"{name} is not ready after {READY_DEADLINE_S:g} s", supervisor.log_of(name)))
            await asyncio.sleep(POLL_S / 4)


def _say_what_happens(trial: Trial, console: Console) -> None:
    if trial.condition is Condition.UNFINISHED:
        console.print(f"the trial {trial.directory} exists and is not finished: it is resumed (recover.mode=auto)", soft_wrap=True)
    else:
        console.print(f"new trial {trial.directory}", soft_wrap=True)
    if trial.changed:
        console.print(f"other values than at the last start: {', '.join(trial.changed)}", soft_wrap=True)


@asynccontextmanager
async def _services(trial: Trial, display: Display, make_plan: PlanFactory, *, with_trainer: bool) -> AsyncGenerator[Supervisor]:
    """Set-up, then all processes, stopped when the block is left."""
    trial.begin()
    plan = make_plan(trial.config, trial.config_file, trial.admin_key(), with_trainer)
    await _set_up(plan, display)
    async with Supervisor(display.note) as supervisor:
        for wave in plan.waves:
            display.note(f"starting {', '.join(spec.name for spec in wave)}")
            await supervisor.start(wave)
        yield supervisor


async def _set_up(plan: Plan, display: Display) -> None:
    for step in plan.setup:
        display.note(f"set-up: {step.name}")
        await run_once(step.name, step.command, plan.env, plan.logs / f"{step.name}.log", SETUP_DEADLINE_S)


async def _run(trial: Trial, display: Display, make_plan: PlanFactory, started_at: float) -> tuple[Mapping[int, float], Facts]:
    """Runs the experiment and stops everything again. Returns the reward of each step and the facts of all launches."""
    async with _services(trial, display, make_plan, with_trainer=True) as supervisor:
        accounts = Accounts(trial, supervisor, trial.load_facts(), started_at)
        try:
            watcher = await _watch(trial, accounts, display)
        finally:
            accounts.save()
        if not trial.results_file.exists():
            raise LaunchFailed(f"the experiment is done, but the trainer wrote no {trial.results_file}")
    # After the stop, so that the wall time is that of the whole launch.
    return rewards_by_step(watcher.records), accounts.facts()


async def _watch(trial: Trial, accounts: Accounts, display: Display) -> Watcher:
    async with AsyncExitStack() as stack:
        store, trainer, policy_server = [await stack.enter_async_context(_client(trial, name)) for name in _POLLED]
        watcher = Watcher(store, policy_server)
        await _follow(watcher, trainer, accounts, display)
        return watcher


_POLLED: tuple[ServiceName, ...] = ("trajectory_store", "trainer", "policy_server")


def _client(trial: Trial, name: ServiceName) -> ServiceClient:
    headers = {"Authorization": f"Bearer {trial.admin_key()}"}
    return ServiceClient(name, trial.config.services.url(name), headers=headers)


async def _follow(watcher: Watcher, trainer: ServiceClient, accounts: Accounts, display: Display) -> None:
    """Shows the experiment until it is done. Raises `LaunchFailed` where it failed or a process was given up."""
    while True:
        accounts.supervisor.check()
        snapshot = await watcher.poll()
        supervisor = accounts.supervisor
        display.show(snapshot, supervisor.states(), sum(supervisor.restarts().values()))
        if snapshot.phase in ("done", "failed") and await _agrees(trainer, snapshot):
            break
        accounts.save_now_and_then()
        await asyncio.sleep(POLL_S)
    if snapshot.phase == "failed":
        raise LaunchFailed(with_log(f"the experiment failed: {snapshot.detail}", accounts.supervisor.log_of("trainer")))


async def _agrees(trainer: ServiceClient, snapshot: Snapshot) -> bool:
    # After a resume the store still holds the last word of the earlier launch until the trainer has spoken.
    try:
        experiment: dict[str, Any] = await trainer.get("/v1/experiment", timeout_s=5.0)
    except RemoteError:
        return False
    return experiment.get("phase") == snapshot.phase
