"""Owns which data-parallel rank reads which groups of a batch. Pure: every rank computes the same answer from the same sizes."""

import heapq
from collections.abc import Sequence


def shard_of(sizes: Sequence[int], world: int, rank: int) -> list[int]:
    """Positions of the groups that ``rank`` of ``world`` reads, ascending.

    Longest first onto the least loaded rank (Graham 1969: at most 4/3 of the best split), ties by position and rank. ``sizes`` are bytes.
    Groups stay whole, because their members are compared with each other. Raises ValueError where the rank does not exist.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank: {rank} is not one of the {world} ranks")
    loads = [(0, each) for each in range(world)]
    mine: list[int] = []
    for position in sorted(range(len(sizes)), key=lambda position: (-sizes[position], position)):
        load, lightest = heapq.heappop(loads)
        # A group of unknown size still counts as something, so that ranks get equal numbers of them.
        heapq.heappush(loads, (load + max(sizes[position], 1), lightest))
        if lightest == rank:
            mine.append(position)
    return sorted(mine)
