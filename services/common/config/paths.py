"""Owns where the files of a trial lie. One function a place; nobody joins these paths by hand."""

from pathlib import Path

from services.common.config.experiment import ExperimentConfig


def trial_dir(config: ExperimentConfig) -> Path:
    """``{fileroot}/{experiment}/{trial}``, absolute."""
    return Path(config.cluster.fileroot).absolute() / config.experiment_name / config.trial_name


def logs_dir(config: ExperimentConfig) -> Path:
    """One log file a service."""
    return trial_dir(config) / "logs"


def initial_model_dir(config: ExperimentConfig) -> Path:
    """The HF folder of policy version 0: ``actor.path``, or the small policy made at set-up."""
    return Path(config.actor.path).absolute() if config.actor.path else trial_dir(config) / "model_init"


def weights_dir(config: ExperimentConfig) -> Path:
    """Published weights, one HF folder ``v<version>`` each."""
    return trial_dir(config) / "weights"


def checkpoints_dir(config: ExperimentConfig) -> Path:
    """Trainer checkpoints for recovery."""
    return trial_dir(config) / "checkpoints"


def redis_dir(config: ExperimentConfig) -> Path:
    """Data of the Redis that the launcher starts."""
    return trial_dir(config) / "redis"


def results_file(config: ExperimentConfig) -> Path:
    """Written by the trainer at the end."""
    return trial_dir(config) / "results.json"
