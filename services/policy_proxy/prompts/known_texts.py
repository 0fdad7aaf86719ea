"""Owns the tokens of pieces of text that were encoded before, such as the system turn that all calls of an episode share.

A cache with a budget in bytes, least recently used first. Refuses to know where a text may be cut; `rendering` does.
"""

from collections import OrderedDict

from services.common.wire.calls import Ids

BUDGET_BYTES = 64 * 2**20
"""A system turn with its tools takes about 150 kB, a message 1 kB."""
OVERHEAD_BYTES = 300


class KnownTexts:
    """Text to ids."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._known: OrderedDict[str, Ids] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, text: str) -> Ids | None:
        """int32 [n], or None where the text is not known."""
        ids = self._known.get(text)
        if ids is not None:
            self._known.move_to_end(text)
        return ids

    def put(self, text: str, ids: Ids) -> None:
        """Keeps a text's ids for as long as there is room."""
        if self._known.pop(text, None) is not None:
            self.bytes -= _cost(text, ids)
        self._known[text] = ids
        self.bytes += _cost(text, ids)
        while self.bytes > self._budget:
            old_text, old_ids = self._known.popitem(last=False)
            self.bytes -= _cost(old_text, old_ids)


def _cost(text: str, ids: Ids) -> int:
    return len(text) * (1 if text.isascii() else 4) + ids.nbytes + OVERHEAD_BYTES
