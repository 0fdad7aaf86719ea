"""Owns what memory keeps of the newest calls of a session, so that the next call costs only what is new in it.

A tip is the end of a branch: the ids of its whole sequence, and where its text may go on. Tips are a cache with a budget in bytes:
without one the same prompt is made from the call records and the whole text. Refuses to decide what a prompt extends (`alignment`).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

import msgspec
import orjson

from services.common.wire.calls import Ids
from services.policy_proxy.chat.fields import Json
from services.policy_proxy.prompts.template_run import Checkpoint
from services.policy_proxy.prompts.texts import new_digest

BUDGET_BYTES = 256 * 2**20
"""4096 sessions of 16,000 tokens."""
TIPS_PER_SESSION = 8
"""An agent with more branches than this at a time pays for whole texts."""
OVERHEAD_BYTES = 2000
"""Of a tip beside its ids."""


class Tip(msgspec.Struct, frozen=True):
    """A recorded call, as the next one needs it."""

    call_id: str
    n_messages: int
    """Messages of its request."""
    history: bytes
    """Digest of those messages (`history_digests`)."""
    checkpoint: Checkpoint | None
    ids: Ids
    """int32 [n]: the whole sequence, prompt and output."""

    @property
    def cost(self) -> int:
        return self.ids.nbytes + OVERHEAD_BYTES


class Tips:
    """The tips of all sessions, least recently used first."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._sessions: OrderedDict[str, OrderedDict[str, Tip]] = OrderedDict()
        self.bytes = 0

    def of(self, session_id: str) -> Collection[Tip]:
        """Those of a session."""
        tips = self._sessions.get(session_id)
        if tips is None:
            return ()
        self._sessions.move_to_end(session_id)
        return tips.values()

    def put(self, session_id: str, tip: Tip, parent: str | None) -> None:
        """Keeps a tip in place of the one it grew from."""
        tips = self._sessions.setdefault(session_id, OrderedDict())
        self._sessions.move_to_end(session_id)
        self._discard(tips, parent)
        self._discard(tips, tip.call_id)
        tips[tip.call_id] = tip
        self.bytes += tip.cost
        if len(tips) > TIPS_PER_SESSION:
            self._discard(tips, next(iter(tips)))
        while self.bytes > self._budget:
            self.drop(next(iter(self._sessions)))

    def drop(self, session_id: str) -> None:
        """Forgets those of a session."""
        tips = self._sessions.pop(session_id, None)
        self.bytes -= sum(tip.cost for tip in tips.values()) if tips else 0

    def _discard(self, tips: OrderedDict[str, Tip], call_id: str | None) -> None:
        tip = tips.pop(call_id, None) if call_id is not None else None
        if tip is not None:
            self.bytes -= tip.cost


def history_digests(messages: Sequence[Json], counts: Iterable[int]) -> dict[int, bytes]:
    """The digest of the first n messages, for each n that there are so many messages for, in one pass.

    Of their JSON and not by comparing them: to Python 1, 1.0 and true are equal, and so are objects in another order.
    """
    running = new_digest()
    found: dict[int, bytes] = {}
    done = 0
    for n in sorted(set(counts)):
        if n > len(messages):
            break
        if n > done:
            running.update(orjson.dumps(messages[done:n])[1:-1] + b",")
        done, found[n] = n, running.digest()
    return found
