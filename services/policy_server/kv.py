"""Owns the key/value cache: the shared trunk, and the private tails that sequences write in preallocated slots.

A sequence is a path of trunk segments and one tail. A slot outlives its sequence, so the next turn of the same session finds its tail and
goes on in place; a sequence that shares only part of another's tail copies that part, because copying is far cheaper than computing.
Refuses to hold keys and values of two weight versions: `KvCache` is made anew for each. Single-threaded.

Shape suffixes: S slots, K key/value heads, T tokens of a slot, E head dimension, n tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.common.nn.qwen3 import Qwen3Config
from services.policy_server.settings import EngineSettings
from services.policy_server.trunk import Ids, Segment, Trunk, common_prefix


@dataclass(slots=True, eq=False)
class Slot:
    """One tail: the tokens behind ``node`` whose keys and values are in row ``index`` of the tail tensors."""

    index: int
    node: Segment
    length: int = 0
    busy: bool = False
    last_used: int = 0

    @property
    def end(self) -> int:
        """Position of the next token."""
        return self.node.end + self.length


@dataclass(frozen=True, slots=True)
class Match:
    """The best cover for a new sequence: a path, and behind it ``n`` tokens of a tail or of a segment that is entered but not left."""

    node: Segment
    slot: Slot | None = None
    child: Segment | None = None
    n: int = 0

    @property
    def covered(self) -> int:
        """Tokens that need no computing."""
        return self.node.end + self.n


def lazy_zeros(shape: tuple[int, ...]) -> Tensor:
    """Zeros whose memory is committed where it is written first: numpy asks the system for zero pages, torch writes them.

    Zeros, because a masked key has weight zero, and zero times a stale NaN would be NaN.
    """
    return torch.from_numpy(np.zeros(shape, np.float32))


class KvCache:
    """Keys and values of one weight version."""

    def __init__(self, config: Qwen3Config, settings: EngineSettings) -> None:
        shape = (settings.kv_slots, config.num_key_value_heads, settings.max_tail_tokens, config.head_dim)
        self.k_SKTE = [lazy_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.v_SKTE = [lazy_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.tokens_ST = np.zeros((settings.kv_slots, settings.max_tail_tokens), np.int32)
        self.trunk = Trunk()
        self.slots = [Slot(index, self.trunk.root) for index in range(settings.kv_slots)]
        self.max_tail = settings.max_tail_tokens
        self._min_trunk = settings.min_trunk_tokens
        self._max_trunk = settings.max_trunk_tokens
        self._clock = 0
        for slot in self.slots:
            slot.node.holders += 1

    def find(self, tokens: Ids) -> Match:
        """The best cover of all but the last token of ``tokens``: that one is always computed, because its logits are needed."""
        usable = tokens[:-1]
        node, child, inside = self.trunk.walk(usable)
        slot, n = self._longest_tail(node, usable)
        if slot is not None and (slot.node.end + n, slot.node.end) >= (node.end + inside, node.end):
            return Match(slot.node, slot=slot, n=n)
        return Match(node, child=child, n=inside)

    def share(self, match: Match) -> bool:
        """Turns a long cover into trunk, by splitting a segment or by moving the common start of a tail. True where something changed."""
        if match.n < self._min_trunk:
            return False
        if match.child is not None:
            self.trunk.split(match.child, match.n)
            self._fold_into_tails(match.child)
            return True
        if match.slot is not None and (match.slot.busy or match.slot.length > match.n):
            self._promote(match.slot, match.n)
            return True
        return False

    def seat(self, match: Match) -> Slot:
        """A busy slot that holds the cover. In place where the tail is idle and matches whole, else a copy in the oldest idle slot."""
        source = match.slot
        if source is not None and not source.busy and source.length == match.n:
            return self._take(source)
        slot = self._oldest_idle()
        self._hang(slot, match.node)
        for layer in range(len(self.k_SKTE)):
            self._copy(self.k_SKTE[layer], slot, match, layer, values=False)
            self._copy(self.v_SKTE[layer], slot, match, layer, values=True)
        if source is not None:
            self.tokens_ST[slot.index, : match.n] = self.tokens_ST[source.index, : match.n]
        elif match.child is not None:
            self.tokens_ST[slot.index, : match.n] = match.child.tokens[: match.n]
        slot.length = match.n
        return self._take(slot)

    def release(self, slot: Slot) -> None:
        """The sequence is done; the tail stays for whoever continues it."""
        slot.busy = False
        self._touch(slot)

    def append(self, slot: Slot, tokens: Ids) -> None:
        """Counts ``tokens`` as written behind the tail. There must be room."""
        self.tokens_ST[slot.index, slot.length : slot.length + len(tokens)] = tokens
        slot.length += len(tokens)

    def room(self, slot: Slot) -> int:
        """Tokens that still fit behind the tail. A full tail is moved into a segment of its own first, so this is never zero."""
        if slot.length == self.max_tail:
            self._promote(slot, slot.length)
        return self.max_tail - slot.length

    def new_segment(self, parent: Segment, tokens: Ids) -> Segment:
        """An empty segment behind ``parent``, to be computed and then attached. It holds its parent until then."""
        shape = (1, self.k_SKTE[0].shape[1], len(tokens), self.k_SKTE[0].shape[3])
        parent.holders += 1
        return Segment(
            parent=parent,
            tokens=tokens,
            start=parent.end,
            k_1KnE=[torch.zeros(shape) for _ in self.k_SKTE],
            v_1KnE=[torch.zeros(shape) for _ in self.k_SKTE],
        )

    def attach(self, segment: Segment) -> None:
        """Makes a computed segment part of the trunk, and room for it by dropping old leaves and the idle tails behind them."""
        assert segment.parent is not None
        self.trunk.attach(segment)
        segment.parent.holders -= 1
        while self.trunk.tokens > self._max_trunk and self._drop_oldest_leaf():
            pass

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are kept."""
        return self.trunk.tokens + sum(slot.length for slot in self.slots)

    def _longest_tail(self, node: Segment, usable: Ids) -> tuple[Slot | None, int]:
        on_path = {id(segment) for segment in node.path()} | {id(self.trunk.root)}
        best: Slot | None = None
        best_n = 0
        by_node: dict[int, list[Slot]] = {}
        for slot in self.slots:
            if slot.length and id(slot.node) in on_path:
                by_node.setdefault(id(slot.node), []).append(slot)
        for slots in by_node.values():
            slot, n = self._longest_of(slots, usable[slots[0].node.end :])
            reach = slot.node.end + n
            if n and (best is None or (reach, slot.node.end) > (best.node.end + best_n, best.node.end)):
                best, best_n = slot, n
        return best, best_n

    def _longest_of(self, slots: list[Slot], rest: Ids) -> tuple[Slot, int]:
        """The slot that shares most with ``rest``; among equals one that can be taken over in place."""
        width = min(len(rest), max(slot.length for slot in slots))
        rows = np.array([slot.index for slot in slots])
        lengths = np.array([slot.length for slot in slots])
        differs = self.tokens_ST[rows, :width] != rest[:width]
        differs |= np.arange(width) >= lengths[:, None]
        shared = np.where(differs.any(1), differs.argmax(1), width) if width else np.zeros(len(slots), np.int64)
        in_place = np.array([not slot.busy and slot.length == n for slot, n in zip(slots, shared, strict=True)])
        pick = int((shared * 2 + in_place).argmax())
        return slots[pick], int(shared[pick])

    def _copy(self, target_SKTE: Tensor, slot: Slot, match: Match, layer: int, *, values: bool) -> None:
        if match.slot is not None and match.slot is not slot:
            target_SKTE[slot.index, :, : match.n] = target_SKTE[match.slot.index, :, : match.n]
        elif match.child is not None:
            source_1KnE = (match.child.v_1KnE if values else match.child.k_1KnE)[layer]
            target_SKTE[slot.index, :, : match.n] = source_1KnE[0, :, : match.n]

    def _promote(self, source: Slot, n: int) -> None:
        """Moves the first ``n`` tokens of a tail into a segment, for every tail behind the same node that starts with them."""
        node = source.node
        tokens = self.tokens_ST[source.index, :n].copy()
        segment = Segment(
            parent=node,
            tokens=tokens,
            start=node.end,
            k_1KnE=[k[source.index : source.index + 1, :, :n].clone() for k in self.k_SKTE],
            v_1KnE=[v[source.index : source.index + 1, :, :n].clone() for v in self.v_SKTE],
        )
        node.holders += 1
        for slot in self.slots:
            if slot.node is node and slot.length >= n and common_prefix(self.tokens_ST[slot.index, :n], tokens) == n:
                self._shift(slot, -n)
                self._hang(slot, segment)
        self.attach(segment)

    def _fold_into_tails(self, lower: Segment) -> None:
        """Gives a short leaf back to the tails behind it: a segment of its own costs every decode step another kernel call."""
        holders = [slot for slot in self.slots if slot.node is lower]
        n = len(lower.tokens)
        fits = all(slot.length + n <= self.max_tail for slot in holders)
        if lower.children or n >= self._min_trunk or lower.holders > len(holders) or not fits:
            return
        assert lower.parent is not None
        for slot in holders:
            self._shift(slot, n)
            for layer in range(len(self.k_SKTE)):
                self.k_SKTE[layer][slot.index, :, :n] = lower.k_1KnE[layer][0]
                self.v_SKTE[layer][slot.index, :, :n] = lower.v_1KnE[layer][0]
            self.tokens_ST[slot.index, :n] = lower.tokens
            self._hang(slot, lower.parent)
        self.trunk.drop(lower)

    def _shift(self, slot: Slot, by: int) -> None:
        """Moves a tail to the right, or to the left over what it no longer needs."""
        old, new = slice(max(-by, 0), slot.length), slice(max(by, 0), slot.length + by)
        for tensor_SKTE in (*self.k_SKTE, *self.v_SKTE):
            row_KTE = tensor_SKTE[slot.index]
            row_KTE[:, new] = row_KTE[:, old].clone()
        row = self.tokens_ST[slot.index]
        row[new] = row[old].copy()
        slot.length += by

    def _drop_oldest_leaf(self) -> bool:
        for leaf in self.trunk.old_leaves():
            tails = [slot for slot in self.slots if slot.node is leaf and not slot.busy]
            if leaf.holders > len(tails):
                continue
            for slot in tails:
                slot.length = 0
                self._hang(slot, self.trunk.root)
            self.trunk.drop(leaf)
            return True
        return False

    def _hang(self, slot: Slot, node: Segment) -> None:
        slot.node.holders -= 1
        slot.node = node
        node.holders += 1

    def _take(self, slot: Slot) -> Slot:
        slot.busy = True
        self._touch(slot)
        return slot

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock

    def _oldest_idle(self) -> Slot:
        """Empty slots first, the lowest first: neighbouring slots are attended to in one kernel call."""
        return min((slot for slot in self.slots if not slot.busy), key=lambda slot: (slot.length > 0, slot.last_used, slot.index))
