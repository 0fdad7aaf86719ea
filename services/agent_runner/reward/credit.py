"""Owns how an episode's reward becomes one reward per agent call: the format penalty and AReaL's turn discount.

Pure functions on the finished episode. Refuses advantages: normalisation between episodes is the trainer's.
"""

from collections.abc import Collection


def turn_rewards(reward: float, n_turns: int, *, turn_discount: float, format_errors: Collection[int], penalty: float) -> list[float]:
    """What each of ``n_turns`` agent calls earned, in call order.

    The last call gets ``reward``; calls in ``format_errors`` lose ``penalty`` each. Then, from the end, r_i ← r_i + γ·r_{i+1}, so that
    r_i = Σ_{j≥i} γ^{j−i} r_j (AReaL, ``InteractionCache.apply_reward_discount``). Without penalty and discount every call has ``reward``.
    Raises ValueError for a format error in a call that was never made.
    """
    if any(not 0 <= index < n_turns for index in format_errors):
        raise ValueError(f"format_errors {sorted(format_errors)}: the episode has {n_turns} calls")
    earned = [-penalty if index in format_errors else 0.0 for index in range(n_turns)]
    if earned:
        earned[-1] += reward
    for index in range(n_turns - 2, -1, -1):
        earned[index] += turn_discount * earned[index + 1]
    return earned
