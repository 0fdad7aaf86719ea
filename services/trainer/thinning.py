"""Owns prefix thinning: SFT steps that see a random sample of the shared prefix instead of all of it.

Every episode starts with the same thousands of tokens, and a step over all of them costs several times a step over the rest. A thinned
step keeps a random sample of their chunks at their true positions; each kept key stands for `weight` keys in the softmax of what follows
(an importance-weighted estimate of its denominator). The weight ramps up from nearly nothing, because a small model learns to read tool
results far sooner without distractors; the last steps see the whole prefix. Refuses to touch RL: there every token is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.common.config.laptop import SftConfig
from services.common.wire.calls import Row
from services.trainer.packing import common_prefix

Int = NDArray[np.int64]

CHUNK = 64
"""Neighbouring tokens are kept together, so that what attends locally within the prefix still can."""
FIRST_LOG_WEIGHT = -4.0
RAMP = (0.3, 0.7)
"""Shares of the thinned steps between which the weight rises to its full value."""


@dataclass(frozen=True, slots=True)
class Thinning:
    """What one step keeps of the first ``shared`` tokens."""

    shared: int
    kept_T: Int
    """Positions kept, ascending."""
    log_weight: float
    """log of how many keys each kept key stands for."""

    def apply(self, row: Row) -> Row:
        """The row without the tokens that are not kept. Its generated tokens must lie behind the shared prefix."""
        return msgspec.structs.replace(row, ids=np.concatenate([row.ids[: self.shared][self.kept_T], row.ids[self.shared :]]))

    def positions(self, depth_N: Int) -> Int:
        """True positions of tokens from their positions in thinned sequences."""
        n_kept = len(self.kept_T)
        return np.where(depth_N < n_kept, self.kept_T[np.minimum(depth_N, n_kept - 1)], depth_N - n_kept + self.shared)


def shared_prefix(rows: Sequence[Row]) -> int:
    """Length of the prompt prefix that all rows share (no generated token is in it)."""
    first = rows[0]
    return min(min(common_prefix(first.ids, row.ids), len(row.ids) - row.n_output) for row in rows)


def thinning_of(step: int, shared: int, sft: SftConfig, seed: int) -> Thinning | None:
    """What SFT step ``step`` (0-based) keeps; None where it sees everything."""
    thinned_steps = sft.steps - sft.full_prefix_steps
    if not sft.prefix_tokens or step >= thinned_steps or shared <= sft.prefix_tokens:
        return None
    draw = np.random.default_rng([seed, step])
    chunks = np.sort(draw.choice(shared // CHUNK, max(1, sft.prefix_tokens // CHUNK), replace=False))
    kept_T = (chunks[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)
    return Thinning(shared, kept_T, log_weight(step / thinned_steps, shared / len(kept_T)))


def log_weight(progress: float, full: float) -> float:
    """Log weight of a kept key: flat at `FIRST_LOG_WEIGHT`, then linear in the log up to log(full), then flat."""
    start, stop = RAMP
    share = min(1.0, max(0.0, (progress - start) / (stop - start)))
    return FIRST_LOG_WEIGHT + share * (math.log(full) - FIRST_LOG_WEIGHT)
