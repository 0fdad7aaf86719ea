"""Owns the ``frontdesk`` command: its arguments, its exit status, what an interruption does.

Exit status 0: done. 1: the launch or the experiment failed. 2: refused before anything was started. 130: interrupted.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from rich.console import Console

from services.common.config import ExperimentConfig, to_yaml
from services.common.serve import config_arguments, config_from
from services.launcher.launch import train, up
from services.launcher.preflight import PreflightFailed
from services.launcher.supervisor import LaunchFailed
from services.launcher.trial import TrialError, open_trial

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="frontdesk", description="Train customer-service agents on tau2-bench")
    commands = top.add_subparsers(dest="command", required=True)
    config_arguments(commands.add_parser("train", help="run an experiment to its end, with all services on this machine"))
    running = commands.add_parser("up", help="run the services on this machine until stopped")
    config_arguments(running)
    running.add_argument("--trainer", action="store_true", help="the trainer too, which starts the experiment")
    stored = commands.add_parser("config", help="print the resolved config")
    config_arguments(stored)
    stored.add_argument("--write", action="store_true", help="store it in the trial's folder, as a start would, and print its path")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    given = parser().parse_args(arguments)
    config = config_from(given)
    try:
        if given.command == "config" and given.write:
            return write_config(config)
        if given.dry_run or given.command == "config":
            sys.stdout.write(to_yaml(config))
            return DONE
        console = Console(markup=False, highlight=False)
        job = train(config, console) if given.command == "train" else up(config, console, with_trainer=given.trainer)
        return asyncio.run(_until_stopped(job))
    except (TrialError, PreflightFailed) as error:
        sys.stderr.write(f"not started: {error}\n")
        return REFUSED
    except LaunchFailed as error:
        sys.stderr.write(f"failed: {error}\n")
        return FAILED


def write_config(config: ExperimentConfig) -> int:
    """Stores the resolved config in the trial's folder, under the same rules as a start. Prints the path."""
    with open_trial(config) as trial:
        trial.begin()
        sys.stdout.write(f"{trial.config_file}\n")
    return DONE


async def _until_stopped(job: Coroutine[Any, Any, None]) -> int:
    """Runs ``job``; a stop signal cancels it, and the job stops what it started on its way out. A second one does not wait for that."""
    task = asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        sys.stderr.write(f"{number.name}: stopping everything{'' if len(received) == 1 else ' at once'}\n")
        task.cancel()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await job
    except asyncio.CancelledError:
        sys.stderr.write("interrupted; the same command resumes the trial\n")
        return INTERRUPTED
    return DONE
