"""Owns the trial's folder from the launcher's side: whose it is now, which config it was begun with, whether it is finished.

Refuses to overwrite: a folder that is no trial, a trial of another config, a trial that another launcher runs are errors with a remedy.
"""

import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from services.common.app import ADMIN_KEY_ENV
from services.common.config import ConfigError, ExperimentConfig, load_config, paths, to_yaml
from services.launcher.files import read_json, write_atomically, write_json

CONFIG_NAME = "config.yaml"
LOCK_NAME = "launcher.lock"
FACTS_NAME = "launcher.json"
KEY_NAME = "admin_key"
FREE_SECTIONS = ("services.", "recover.", "log_level")
"""Keys that may differ between two starts of one trial: where and how processes run, not what the experiment is."""


class TrialError(Exception):
    """The trial cannot be run; the message says why and what to do."""


class Condition(StrEnum):
    """What was found in the trial's folder."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


@dataclass(slots=True)
class Facts:
    """What the launcher knows of a trial and the trainer does not, over all its launches."""

    wall_s: float = 0.0
    restarts: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that this launcher holds the lock of."""

    config: ExperimentConfig
    directory: Path
    condition: Condition
    changed: list[str]
    """Keys whose values differ from the last start, all of them allowed to."""

    @property
    def config_file(self) -> Path:
        """The resolved config, which all services are started from."""
        return self.directory / CONFIG_NAME

    @property
    def results_file(self) -> Path:
        """See `paths.results_file`."""
        return paths.results_file(self.config)

    def begin(self) -> None:
        """Makes the folders and stores the resolved config."""
        paths.logs_dir(self.config).mkdir(parents=True, exist_ok=True)
        write_atomically(self.config_file, to_yaml(self.config))

    def admin_key(self) -> str:
        """The admin key of the environment, or this trial's own, made at the first start and readable by its owner alone."""
        if given := os.environ.get(ADMIN_KEY_ENV):
            return given
        file = self.directory / KEY_NAME
        if not file.exists():
            write_atomically(file, secrets.token_urlsafe(32), mode=0o600)
        return file.read_text(encoding="utf-8").strip()

    def load_facts(self) -> Facts:
        """What earlier launches of this trial left."""
        stored = read_json(self.directory / FACTS_NAME)
        return Facts(wall_s=float(stored.get("wall_s", 0.0)), restarts=dict(stored.get("restarts", {})))

    def save_facts(self, facts: Facts) -> None:
        """Keeps the facts for the next launch."""
        write_json(self.directory / FACTS_NAME, {"wall_s": round(facts.wall_s, 3), "restarts": facts.restarts})


@contextmanager
def open_trial(config: ExperimentConfig) -> Generator[Trial]:
    """Holds the trial's lock while the block runs. Raises `TrialError`; writes nothing but the lock file."""
    directory = paths.trial_dir(config)
    _refuse_foreign(directory)
    existed = (directory / CONFIG_NAME).exists()
    if existed and config.recover.mode == "disabled":
        raise TrialError(
            f"the trial {directory} exists and recover.mode is disabled: choose another trial_name, "
            "resume it with recover.mode=auto, or remove the folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / LOCK_NAME):
        yield Trial(config, directory, _condition(directory, paths.results_file(config)), _check_config(directory, config))


def different_keys(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two nested mappings, sorted. A key that only one of them has differs."""
    one, other = _flatten(left), _flatten(right)
    missing = object()
    return sorted(key for key in one.keys() | other.keys() if one.get(key, missing) != other.get(key, missing))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _refuse_foreign(directory: Path) -> None:
    if not directory.exists() or (directory / CONFIG_NAME).exists():
        return
    if any(entry.name != LOCK_NAME for entry in directory.iterdir()):
        raise TrialError(f"{directory} exists and is no trial (it has no {CONFIG_NAME}): choose another trial_name or cluster.fileroot")


def _condition(directory: Path, results: Path) -> Condition:
    if not (directory / CONFIG_NAME).exists():
        return Condition.NEW
    # The launcher's own key: a results file without it is one whose launch was cut off before the end.
    return Condition.FINISHED if "restarts" in read_json(results) else Condition.UNFINISHED


def _check_config(directory: Path, config: ExperimentConfig) -> list[str]:
    file = directory / CONFIG_NAME
    if not file.exists():
        return []
    try:
        stored = load_config(file)
    except ConfigError as error:
        raise TrialError(f"the trial's stored config does not load ({error}): choose another trial_name") from error
    changed = different_keys(stored.model_dump(mode="json"), config.model_dump(mode="json"))
    if forbidden := [key for key in changed if not key.startswith(FREE_SECTIONS)]:
        raise TrialError(
            f"the trial {directory} was begun with other values of {', '.join(forbidden)} (see {file}): "
            "choose another trial_name for another experiment, or start with the stored values to resume"
        )
    return changed


@contextmanager
def _lock(file: Path) -> Generator[None]:
    # An flock and not a pid file: the kernel drops it with its holder, so a killed launcher leaves nothing to clean up.
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip()
            raise TrialError(f"the trial {file.parent} is run by another launcher (pid {holder}): stop that one first") from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield
