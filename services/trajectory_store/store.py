"""Owns how the parts of the store hang together: one object a trial, none of which holds what a kill -9 would lose."""

import os
from dataclasses import dataclass

from services.common.config import ExperimentConfig
from services.trajectory_store.bell import Bell
from services.trajectory_store.keys import Keys
from services.trajectory_store.redis_store.audits import Audits
from services.trajectory_store.redis_store.batches import Batches
from services.trajectory_store.redis_store.database import Database, Server
from services.trajectory_store.redis_store.events import Events
from services.trajectory_store.redis_store.experiment import Experiment
from services.trajectory_store.redis_store.ledger import Ledger
from services.trajectory_store.redis_store.prefixes import Prefixes
from services.trajectory_store.redis_store.retention import Retention, limits_of
from services.trajectory_store.redis_store.rollouts import RolloutQueue
from services.trajectory_store.redis_store.sessions import Sessions
from services.trajectory_store.redis_store.trajectories import Trajectories
from services.trajectory_store.rules import rules_of
from services.trajectory_store.spill import Bodies


@dataclass(frozen=True, slots=True)
class Store:
    """All parts of one trial over one `Database`, and the bells that wake waiting requests."""

    trial: str
    """experiment/trial"""
    database: Database
    rollouts: RolloutQueue
    sessions: Sessions
    trajectories: Trajectories
    batches: Batches
    ledger: Ledger
    audits: Audits
    retention: Retention
    events: Events
    experiment: Experiment
    work: Bell
    """Rings when an episode may have become queued."""
    ready: Bell
    """Rings when a group may have become ready."""


def build_store(config: ExperimentConfig, server: Server | None = None, trial: str | None = None) -> Store:
    """The store of one trial, by default the config's. Connects on first use."""
    settings = config.services.trajectory_store
    rules = rules_of(settings)
    trial = trial or trial_of(config)
    database = Database(server or Server(redis_url(config)), Keys.of_trial(*trial.split("/", 1)))
    bodies = Bodies(settings.spill_url, settings.spill_over_kb * 1024, trial)
    prefixes = Prefixes(database)
    trajectories = Trajectories(database, bodies, prefixes, rules)
    sessions = Sessions(database, bodies, prefixes, rules.session_ttl_s)
    return Store(
        trial=trial,
        database=database,
        rollouts=RolloutQueue(database, rules),
        sessions=sessions,
        trajectories=trajectories,
        batches=Batches(database, trajectories, sessions, rules),
        ledger=Ledger(database),
        audits=Audits(database),
        retention=Retention(database, bodies, limits_of(settings)),
        events=Events(database),
        experiment=Experiment(database),
        work=Bell(),
        ready=Bell(),
    )


def trial_of(config: ExperimentConfig) -> str:
    """experiment/trial of a config."""
    return f"{config.experiment_name}/{config.trial_name}"


def redis_url(config: ExperimentConfig) -> str:
    """``REDIS_URL``, else the configured URL, else the Redis that the launcher starts."""
    settings = config.services.trajectory_store
    return os.environ.get("REDIS_URL") or settings.redis_url or f"redis://127.0.0.1:{settings.redis_port}/0"
