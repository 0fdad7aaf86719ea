"""Owns how far one update may move the policy: the divergence it made, and the share of it that is allowed.

A learning rate bounds how far parameters move, not what that does to the policy: with few and rare rewards some updates of the same rate
move it ten times as far as others, and what they break takes many steps to mend. Pure functions; refuses to know models.
"""

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def allowed_share(kl: float, max_kl: float) -> float:
    """The share of an update that moves the policy by ``max_kl`` where the whole moves it by ``kl``; 1.0 where that is not more.

    Divergence grows with the square of a small step, as in the last scaling of TRPO's step (Schulman et al. 2015, appendix C).
    """
    return 1.0 if kl <= max_kl else math.sqrt(max_kl / kl)


def divergence(new_logp_R: Float32, old_logp_R: Float32) -> float:
    """KL(old ‖ new) per token, estimated on tokens that the old policy sampled: the mean of exp(d) − 1 − d with d = new − old.

    Never negative and of low variance (Schulman 2020, "Approximating KL divergence", k3). 0.0 for no tokens.
    """
    if not len(old_logp_R):
        return 0.0
    gap_R = new_logp_R.astype(np.float64) - old_logp_R
    return float(np.mean(np.expm1(gap_R) - gap_R))
