"""Owns the checks before anything is started. Refuses to start a launch that cannot work, and says what to change."""

from pathlib import Path

from services.common.config import ExperimentConfig
from services.launcher.plan import foreign_urls, wanted_ports
from services.launcher.ports import problems


class PreflightFailed(Exception):
    """The launch cannot work; the message says why and what to change."""


def check(config: ExperimentConfig, *, with_trainer: bool) -> None:
    """Raises `PreflightFailed` with everything that stands in the way."""
    found = [*_urls(), *_model(config), *_ports(config, with_trainer=with_trainer)]
    if found:
        raise PreflightFailed("\n".join(found))


def _urls() -> list[str]:
    return [f"{name} is set, but the launcher runs every service itself: unset it" for name in foreign_urls()]


def _model(config: ExperimentConfig) -> list[str]:
    path = config.actor.path
    if not path or (Path(path) / "config.json").exists():
        return []
    return [f"actor.path: {path} is not a Hugging Face model folder; leave it empty for the small policy made at set-up"]


def _ports(config: ExperimentConfig, *, with_trainer: bool) -> list[str]:
    try:
        return problems(wanted_ports(config, with_trainer=with_trainer))
    except OSError as error:
        return [f"services.*.host: cannot listen there ({error})"]
