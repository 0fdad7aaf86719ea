"""Owns how the seeds of an episode's calls follow from the seed of the episode, so that a run can be repeated call by call."""

import hashlib


def call_seed(*parts: int | str) -> int:
    """A seed in [0, 2**31) that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
