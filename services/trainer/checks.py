"""Owns what this build cannot train, said before anything runs: each refusal names the key and the remedy."""

import hashlib
import json

from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.config.paths import initial_model_dir
from services.common.ids import is_valid_id
from services.trainer.engine import check_backend

NEVER_SOLO = frozenset({"airline", "retail", "banking_knowledge"})
"""Domains that tau2 refuses to build for a solo agent."""


class ExperimentFailed(Exception):
    """The experiment cannot go on, and trying again would not help. The message is for the user."""


def check_config(config: ExperimentConfig) -> None:
    """Raises `ExperimentFailed` for the first thing in the config that cannot work here."""
    try:
        check_backend(config.actor)
    except ValueError as error:
        raise ExperimentFailed(str(error)) from error
    for wrong, message in _refusals(config):
        if wrong:
            raise ExperimentFailed(message)


def _refusals(config: ExperimentConfig) -> list[tuple[bool, str]]:
    actor, batch, consumer = config.actor, config.train_dataset.batch_size, config.rollout.consumer_batch_size
    model = initial_model_dir(config)
    return [
        (not is_valid_id(config.trial_name), f"trial_name: {config.trial_name!r} must be letters, digits and ._:- only"),
        (actor.kl_ctl != 0, "actor.kl_ctl: this build has no reference model to take a KL term against; set it to 0"),
        (
            actor.discount != 1 or actor.gae_lambda != 1,
            "actor.discount, actor.gae_lambda: without a critic both must be 1; discount turns with econfig.turn_discount",
        ),
        (
            actor.use_decoupled_loss and not actor.recompute_logprob,
            "actor.recompute_logprob: the decoupled loss needs it; set it to true, or use_decoupled_loss to false",
        ),
        (config.gconfig.n_samples < 2, "gconfig.n_samples: episodes are compared within their group; set it to 2 or more"),
        (
            consumer not in (None, batch),
            f"rollout.consumer_batch_size: {consumer} differs from train_dataset.batch_size = {batch}; make them equal",
        ),
        *_solo_refusals(config),
        (
            not (model / "config.json").exists(),
            f"actor.path: no model in {model}; run `python -m services.trainer init --config FILE --corpus FILE` first",
        ),
    ]


def _solo_refusals(config: ExperimentConfig) -> list[tuple[bool, str]]:
    """Tasks without a ticket are found when the tasks are listed; that a whole domain has none is known before anything runs."""
    named = [("train_dataset", ref) for ref in config.train_dataset.shares()]
    named += [("valid_dataset", ref) for ref in config.valid_dataset.shares()]
    if config.sft.enabled:
        named.append(("sft.dataset", DatasetRef.parse(config.sft.dataset)))
    return [
        (
            config.econfig.solo_mode and ref.domain in NEVER_SOLO,
            f"econfig.solo_mode: {key} names {ref}, and {ref.domain} cannot be played without a user; "
            f"set econfig.solo_mode=false, or take {ref} out of {key}",
        )
        for key, ref in named
    ]


def config_digest(config: ExperimentConfig) -> str:
    """sha256 over what decides the outcome: the config without where the services listen and where files go."""
    resolved = config.model_dump(mode="json", exclude={"services", "cluster", "log_level"})
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
