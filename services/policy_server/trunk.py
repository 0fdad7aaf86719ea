"""Owns the trunk: a tree of immutable key/value segments, computed once and attended to by every sequence that starts with their tokens.

Refuses to write into a segment: it is split into views, or dropped as a leaf, and never changed. Single-threaded.

Shape suffixes: K key/value heads, n tokens of a segment, E head dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = npt.NDArray[np.int32]
"""Token ids, one dimension."""


def common_prefix(a: Ids, b: Ids) -> int:
    """How many leading tokens ``a`` and ``b`` share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


@dataclass(slots=True, eq=False)
class Segment:
    """Keys and values of ``tokens`` at positions ``start`` to ``end``, behind those of ``parent``. The root has no tokens."""

    parent: "Segment | None"
    tokens: Ids
    start: int
    k_1KnE: list[Tensor]
    """One tensor a layer."""
    v_1KnE: list[Tensor]
    children: "list[Segment]" = field(default_factory=lambda: [])
    holders: int = 0
    """Tails (and builds) that hang on this segment; it is not dropped while there are any."""
    last_used: int = 0

    @property
    def end(self) -> int:
        """Position of the first token behind this segment."""
        return self.start + len(self.tokens)

    def path(self) -> "list[Segment]":
        """This segment and its ancestors, the first tokens first, without the root."""
        found: list[Segment] = []
        node = self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


def new_root() -> Segment:
    """The empty segment that every sequence starts from."""
    return Segment(parent=None, tokens=np.empty(0, np.int32), start=0, k_1KnE=[], v_1KnE=[])


class Trunk:
    """The tree of segments and its size."""

    def __init__(self) -> None:
        self.root = new_root()
        self.tokens = 0
        self._clock = 0

    def walk(self, tokens: Ids) -> tuple[Segment, Segment | None, int]:
        """The deepest segment that ``tokens`` covers whole, its child that they enter next, and how many tokens of that child match."""
        self._clock += 1
        node = self.root
        while True:
            child, n = best_child(node, tokens)
            if child is None or n < len(child.tokens):
                return node, child, n
            node = child
            node.last_used = self._clock

    def attach(self, segment: Segment) -> None:
        """Hangs a computed segment below its parent."""
        assert segment.parent is not None
        self._clock += 1
        segment.last_used = self._clock
        segment.parent.children.append(segment)
        self.tokens += len(segment.tokens)

    def split(self, segment: Segment, at: int) -> Segment:
        """Cuts ``segment`` in two views and returns the upper one. ``segment`` itself becomes the lower, so that its holders stay right."""
        parent = segment.parent
        assert parent is not None
        upper = Segment(
            parent=parent,
            tokens=segment.tokens[:at],
            start=segment.start,
            k_1KnE=[k[:, :, :at] for k in segment.k_1KnE],
            v_1KnE=[v[:, :, :at] for v in segment.v_1KnE],
            children=[segment],
            last_used=segment.last_used,
        )
        parent.children[parent.children.index(segment)] = upper
        segment.parent = upper
        segment.start += at
        segment.tokens = segment.tokens[at:]
        segment.k_1KnE = [k[:, :, at:] for k in segment.k_1KnE]
        segment.v_1KnE = [v[:, :, at:] for v in segment.v_1KnE]
        return upper

    def drop(self, leaf: Segment) -> None:
        """Takes a leaf out of the tree."""
        assert leaf.parent is not None and not leaf.children
        leaf.parent.children.remove(leaf)
        self.tokens -= len(leaf.tokens)

    def segments(self) -> Iterator[Segment]:
        """Every segment but the root."""
        open_nodes = [self.root]
        while open_nodes:
            node = open_nodes.pop()
            open_nodes.extend(node.children)
            if node.parent is not None:
                yield node

    def old_leaves(self) -> list[Segment]:
        """Leaves that the latest `walk` or `attach` did not touch, the longest unused first."""
        return sorted((s for s in self.segments() if not s.children and s.last_used < self._clock), key=lambda s: s.last_used)


def best_child(node: Segment, tokens: Ids) -> tuple[Segment | None, int]:
    """The child of ``node`` that shares most tokens with ``tokens`` from ``node.end`` on, and how many."""
    rest = tokens[node.end :]
    best: Segment | None = None
    longest = 0
    for child in node.children:
        n = common_prefix(child.tokens, rest)
        if n > longest:
            best, longest = child, n
    return best, longest
