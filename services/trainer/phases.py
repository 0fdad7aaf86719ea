"""Owns the phases of an experiment: which there are, which may follow which, and which one a config asks for next."""

from collections.abc import Mapping
from enum import StrEnum

from services.common.config import ExperimentConfig


class Phase(StrEnum):
    """Where the experiment is."""

    SETUP = "setup"
    """Waiting for the services and checking the config."""
    SFT = "sft"
    PUBLISH = "publish"
    """The weights that RL starts from become policy version 0."""
    EVAL_BEFORE = "eval_before"
    RL = "rl"
    EVAL_AFTER = "eval_after"
    FINISH = "finish"
    """Episodes that nobody needs any more are dropped, the results written."""
    DONE = "done"
    FAILED = "failed"
    """Ended by something that no retry mends; the reason stands in the ``experiment`` document."""


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.SETUP: frozenset({Phase.SFT, Phase.PUBLISH, Phase.FAILED}),
    Phase.SFT: frozenset({Phase.PUBLISH, Phase.FAILED}),
    Phase.PUBLISH: frozenset({Phase.EVAL_BEFORE, Phase.RL, Phase.FAILED}),
    Phase.EVAL_BEFORE: frozenset({Phase.RL, Phase.FAILED}),
    Phase.RL: frozenset({Phase.EVAL_AFTER, Phase.FINISH, Phase.FAILED}),
    Phase.EVAL_AFTER: frozenset({Phase.FINISH, Phase.FAILED}),
    Phase.FINISH: frozenset({Phase.DONE, Phase.FAILED}),
    Phase.DONE: frozenset(),
    Phase.FAILED: frozenset(),
}
"""A start after a failure begins in the phase of the last checkpoint, so nothing follows on failed within one process."""


class IllegalTransition(RuntimeError):
    """Somebody asked for an edge that `TRANSITIONS` does not have."""


def move(source: Phase, target: Phase) -> Phase:
    """``target``, where the edge exists. Raises `IllegalTransition`."""
    if target not in TRANSITIONS[source]:
        raise IllegalTransition(f"{source} to {target}")
    return target


def next_phase(phase: Phase, config: ExperimentConfig) -> Phase:
    """The phase that follows ``phase`` once it is through, with what the config leaves out skipped."""
    match phase:
        case Phase.SETUP:
            return move(phase, Phase.SFT if config.sft.enabled else Phase.PUBLISH)
        case Phase.SFT:
            return move(phase, Phase.PUBLISH)
        case Phase.PUBLISH:
            return move(phase, Phase.EVAL_BEFORE if config.evaluator.before else Phase.RL)
        case Phase.EVAL_BEFORE:
            return move(phase, Phase.RL)
        case Phase.RL:
            return move(phase, Phase.EVAL_AFTER if config.evaluator.after else Phase.FINISH)
        case Phase.EVAL_AFTER:
            return move(phase, Phase.FINISH)
        case Phase.FINISH:
            return move(phase, Phase.DONE)
        case Phase.DONE | Phase.FAILED:
            raise IllegalTransition(f"nothing follows on {phase}")
