"""Owns packing training sequences into a prefix tree, so that each shared prefix is computed once.

Sequences are sorted; each keeps the packed positions of what it shares with the one before and appends the rest. In sorted order the
neighbour shares the longest prefix of all earlier sequences, so one pass gives the token-level trie in depth-first order. A token sees
exactly its ancestors: key k is visible to query q when ``k <= q < end[k]``. No mask over the whole tree is ever built.

Shape suffixes: N packed tokens, S sequences, L tokens of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
TokenIds = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tree:
    """Packed sequences. ``places[s]`` maps the tokens of input sequence s to packed positions, in the order the sequences were given."""

    ids_N: Int
    depth_N: Int
    """Position of the token in its sequence."""
    end_N: Int
    """One past the last packed position of the token's subtree."""
    trunk: int
    """Length of the chain at the front that every sequence starts with."""
    places: list[Int]

    @property
    def size(self) -> int:
        """N."""
        return len(self.ids_N)


def common_prefix(a_L: TokenIds, b_L: TokenIds) -> int:
    """Length of the longest common prefix."""
    n = min(len(a_L), len(b_L))
    differ = np.flatnonzero(a_L[:n] != b_L[:n])
    return int(differ[0]) if len(differ) else n


def sort_order(sequences: Sequence[TokenIds]) -> list[int]:
    """Indices of the sequences in lexicographic order of their tokens (big-endian bytes compare as the tokens do)."""
    return sorted(range(len(sequences)), key=lambda s: sequences[s].astype(">i4").tobytes())


def build_tree(sequences: Sequence[TokenIds]) -> Tree:
    """Packs sequences (int32 [L] each). Raises ValueError where there is none, or an empty one."""
    if not sequences or any(len(ids_L) == 0 for ids_L in sequences):
        raise ValueError("sequences: need at least one, none of them empty")
    order = sort_order(sequences)
    places: list[Int] = [np.empty(0, np.int64)] * len(sequences)
    chunks: list[TokenIds] = []
    depths: list[Int] = []
    ends = np.zeros(sum(len(ids_L) for ids_L in sequences), np.int64)
    size, trunk = 0, len(sequences[order[0]])
    previous: int | None = None
    for s in order:
        ids_L = sequences[s]
        shared = 0 if previous is None else common_prefix(sequences[previous], ids_L)
        head = places[previous][:shared] if previous is not None else np.empty(0, np.int64)
        places[s] = np.concatenate([head, np.arange(size, size + len(ids_L) - shared)])
        chunks.append(ids_L[shared:])
        depths.append(np.arange(shared, len(ids_L)))
        size += len(ids_L) - shared
        ends[places[s]] = size
        if previous is not None:
            trunk = min(trunk, shared)
        previous = s
    return Tree(np.concatenate(chunks).astype(np.int64), np.concatenate(depths), ends[:size], trunk, places)


def split_by_size(sequences: Sequence[TokenIds], max_tokens: int) -> list[list[int]]:
    """Partitions sequences into trees of at most ``max_tokens`` packed tokens, neighbours in sorted order together.

    Raises ValueError where one sequence alone is longer.
    """
    parts: list[list[int]] = []
    size = 0
    for s in sort_order(sequences):
        length = len(sequences[s])
        if length > max_tokens:
            raise ValueError(f"max_tokens_per_mb: a sequence of {length} tokens does not fit {max_tokens}; raise it or shorten episodes")
        added = length - (common_prefix(sequences[parts[-1][-1]], sequences[s]) if parts else 0)
        if not parts or size + added > max_tokens:
            parts.append([])
            size, added = 0, length
        parts[-1].append(s)
        size += added
    return parts


def unpacked_tokens(sequences: Sequence[TokenIds]) -> int:
    """Tokens that row-by-row training would compute."""
    return sum(len(ids_L) for ids_L in sequences)
