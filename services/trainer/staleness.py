"""Owns how far rollouts may run ahead of training: AReaL's capacity rule, in groups, and the age limit at consumption. Pure functions."""

from dataclasses import dataclass

from services.common.config import ExperimentConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """The parts of the config that the rule reads."""

    batch: int
    """Groups a PPO step takes."""
    max_offpolicyness: int
    max_concurrent: int
    total_steps: int

    @classmethod
    def of(cls, config: ExperimentConfig) -> "Limits":
        """``rollout.max_concurrent_rollouts`` defaults to two batches."""
        batch = config.train_dataset.batch_size
        concurrent = config.rollout.max_concurrent_rollouts
        return cls(batch, config.rollout.max_head_offpolicyness, 2 * batch if concurrent is None else concurrent, config.total_train_steps)


def capacity(limits: Limits, *, version: int, running: int, waiting: int) -> int:
    """Groups that may be enqueued now.

    ``running``: enqueued and not ready. ``waiting``: ready, or held by the step that is being prepared or computed; groups that were
    dropped are in neither, which frees their place. AReaL's rule (``areal/infra/staleness_manager.py``)::

        min(max_concurrent − running, (max_head_offpolicyness + version + 1) · batch − (accepted + running))

    with accepted = version · batch + waiting, as after AReaL's own recovery. Nothing is enqueued beyond what the remaining steps take.
    """
    accepted = version * limits.batch + waiting
    ahead = (limits.max_offpolicyness + version + 1) * limits.batch - (accepted + running)
    remaining = limits.total_steps * limits.batch - (accepted + running)
    return max(0, min(max(1, limits.max_concurrent) - running, ahead, remaining))


def max_age(limits: Limits) -> int:
    """Most versions by which the oldest token of a trained episode may lie behind the weights that are trained.

    `capacity` leaves at most (offpolicyness + 1) · batch groups unconsumed, so in the order of submission a group is trained at most
    ``max_head_offpolicyness`` versions after it was enqueued, and no token is older than that. Groups finish out of order, so one may
    be overtaken by a step's worth of younger groups: one version more. Without asynchrony nothing overtakes.
    """
    return limits.max_offpolicyness + 1 if limits.max_offpolicyness else 0
