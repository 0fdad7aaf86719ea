"""Owns the learning rate that follows how far updates move the policy: a pure rule and its state.

The rule is the adaptive schedule of rsl_rl (Rudin et al. 2022, "Learning to Walk in Minutes"): above twice the wanted divergence the
rate falls by 1.5, below half of it it rises by 1.5, here never above what the schedule says. The divergence is that of the proximal from
the behaviour policy, which PPO computes anyway: with asynchronous rollouts it is what the last updates did. Refuses to act where nothing
is stale, because nothing was measured.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

FACTOR = 1.5
LOWEST = 1 / 16
"""The least scale, in units of the schedule's rate; the greatest is 1."""


@dataclass(slots=True)
class TrustRegion:
    """The scale on the learning rate. ``target_kl`` in nats per token; 0 leaves the scale at 1."""

    target_kl: float
    scale: float = 1.0

    def observe(self, kl: float) -> None:
        """Takes in the divergence of one step's batch."""
        if not self.target_kl or kl <= 0.0:
            return
        if kl > 2 * self.target_kl:
            self.scale = max(LOWEST, self.scale / FACTOR)
        elif kl < self.target_kl / 2:
            self.scale = min(1.0, self.scale * FACTOR)


def divergence(prox_logp_R: Float32, old_logp_R: Float32) -> float:
    """KL(behaviour ‖ proximal) per token, estimated on the behaviour's own samples: the mean of exp(d) − 1 − d with d = prox − old.

    Never negative and of low variance (Schulman 2020, "Approximating KL divergence", k3). 0.0 for no tokens.
    """
    if not len(old_logp_R):
        return 0.0
    gap_R = prox_logp_R.astype(np.float64) - old_logp_R
    return float(np.mean(np.expm1(gap_R) - gap_R))
