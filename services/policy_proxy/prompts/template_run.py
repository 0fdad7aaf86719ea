"""Owns one run of a rewritten chat template: from the first message, or from a checkpoint of an earlier conversation.

A checkpoint stands before the last message of a conversation: what the loop writes for the messages before it looks at most one
message ahead. It holds for a later conversation whose first messages are the same (that, the caller knows), if the head of the
template writes the same, and the values that the loop reads are the same. Both are looked at in every run; where they differ the run
raises `Moved`, and the caller starts from the first message.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import ge, gt, is_, le, lt
from typing import Any, cast

import msgspec
import orjson
from jinja2 import Environment, Template, Undefined
from jinja2.utils import Namespace

from services.policy_proxy.prompts.template_loop import AT, ITEM, ITEMS, PAST, Limit, Reads
from services.policy_proxy.prompts.texts import Digest, Text, new_digest

Json = dict[str, Any]
MARK = "".join(("\0", "item"))
"""Stands before each item in the pieces of a text; told apart by identity, and never part of the text."""
OPERATORS = {"gt": gt, "gteq": ge, "lt": lt, "lteq": le}


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a conversation that begins with the same ``n_messages`` messages may go on."""

    n_messages: int
    start: int
    """The item of the loop that is written next: the last of those messages."""
    context: bytes
    """Of everything else that the template was rendered with."""
    reads: bytes
    """Of the values that the loop reads."""
    limits: tuple[int, ...]
    """What the loop compares its index with."""
    head: bytes
    """Of what stands before the first item."""
    n_bytes: int
    written: Digest
    """Of the text before item ``start``."""
    earlier: "Checkpoint | None"
    """The first one with these limits: the place to go on from when they move."""


class Rendered(msgspec.Struct, frozen=True):
    """A conversation's text, and where a longer one may go on, if anywhere."""

    text: Text
    checkpoint: Checkpoint | None


class Moved(Exception):
    """The template does not go on from this checkpoint."""


class Step:
    """What a rewritten template sees as its ``loop``."""

    __slots__ = ("_run", "index0")

    def __init__(self, run: "Run", index0: int) -> None:
        self._run = run
        self.index0 = index0

    @property
    def index(self) -> int:
        return self.index0 + 1

    @property
    def first(self) -> bool:
        return self.index0 == 0

    @property
    def last(self) -> bool:
        return self.index0 == len(self._run.items) - 1

    @property
    def previtem(self) -> Any:
        return self._run.items[self.index0 - 1] if self.index0 else self._run.undefined("there is no previous item")

    @property
    def nextitem(self) -> Any:
        return self._run.undefined("there is no next item") if self.last else self._run.items[self.index0 + 1]


class Run:
    """One rendering of ``messages``. ``context`` stands for all other arguments of the template."""

    def __init__(
        self, environment: Environment, reads: Reads, messages: Sequence[Mapping[str, Any]], context: bytes, base: Checkpoint | None
    ) -> None:
        self._environment = environment
        self._reads = reads
        self._messages = messages
        self._context = context
        self._base = base
        self._read: bytes | None = None
        self._limited: Sequence[Any] = ()
        self._limits: tuple[int, ...] = ()
        self._passes = 0
        self._steady = True
        self.undefined = environment.undefined
        self.items: Sequence[Any] = ()

    def render(self, template: Template, arguments: Mapping[str, Any]) -> Rendered:
        """The text. Raises `Moved`, and what the template raises."""
        ours = {ITEMS: self._begin, AT: self._at, PAST: self._past, ITEM: MARK}
        pieces = list(template.generate(**{**arguments, **ours}))
        marks = [index for index, piece in enumerate(pieces) if piece is MARK]
        whole = len(marks) == self._passes > 0
        if self._base is not None:
            if not whole:
                raise Moved
            return self._go_on(self._base, pieces, marks)
        if not whole or self._read is None:
            return Rendered(Text.of("".join(piece for piece in pieces if piece is not MARK)), None)
        head = _join(pieces[: marks[0]])
        written = new_digest(head)
        text = Text(0, new_digest(), head + _join(pieces[marks[0] :]))
        between = _join(pieces[marks[0] : marks[-1]])
        head_digest = written.digest()
        written.update(between)
        return Rendered(text, self._checkpoint(head_digest, len(head) + len(between), written))

    def _go_on(self, base: Checkpoint, pieces: Sequence[str], marks: Sequence[int]) -> Rendered:
        if new_digest(_join(pieces[: marks[0]])).digest() != base.head:
            raise Moved
        text = Text(base.n_bytes, base.written, _join(pieces[marks[0] :]))
        between = _join(pieces[marks[0] : marks[-1]])
        written = base.written.copy()
        written.update(between)
        return Rendered(text, self._checkpoint(base.head, base.n_bytes + len(between), written))

    def _checkpoint(self, head: bytes, n_bytes: int, written: Digest) -> Checkpoint | None:
        if not self._steady or self._read is None:
            return None
        base = self._base
        earlier = (base.earlier or base) if base is not None and base.limits == self._limits else None
        start = len(self.items) - 1
        return Checkpoint(len(self._messages), start, self._context, self._read, self._limits, head, n_bytes, written, earlier)

    def _begin(self, items: Any, values: list[Any], lists: list[Any], limited: list[Any]) -> Iterator[tuple[Any, Step]]:
        """``frontdesk_items``: the items that are to be written."""
        self._limited = limited
        self._look(items, values, lists)
        start = 0 if self._base is None else self._start(self._base, items)
        # A list that grows while the template loops over it is none of ours.
        self.items = list(items)
        self._passes = len(self.items) - start
        return ((self.items[index], Step(self, index)) for index in range(start, len(self.items)))

    def _look(self, items: Any, values: list[Any], lists: list[Any]) -> None:
        """Notes what the loop depends on, where that can be compared."""
        limits = [self._value_of(limit, value) for limit, value in zip(self._reads.limits, self._limited, strict=True)]
        if all(type(limit) is int for limit in limits) and all(self._ends_messages(each) for each in (items, *lists)):
            self._limits = tuple(limits)
            self._read = self._fingerprint(values, [len(self._messages) - len(each) for each in (items, *lists)])

    def _start(self, base: Checkpoint, items: Any) -> int:
        if self._read is None or self._read != base.reads or self._context != base.context or base.start >= len(items):
            raise Moved
        for limit, old, new in zip(self._reads.limits, base.limits, self._limits, strict=True):
            last_written = base.start if limit.index == "index" else base.start - 1
            # Between the two, and maybe at one of them, the comparison comes out differently.
            if old != new and min(old, new) <= last_written and max(old, new) >= 0:
                raise Moved
        return base.start

    def _at(self, values: Any, index: Any, step: Step) -> Any:
        """``frontdesk_at``: ``values[index]``, where ``values`` ends like the items do."""
        if step.index0 < len(self.items) - 1:
            behind_next = not isinstance(index, int) or len(values) - index < len(self.items) - step.index0 - 1
            # A negative index counts from the end, which is another message in a longer conversation.
            self._steady = self._steady and not behind_next and index >= 0
        return self._environment.getitem(values, index)

    def _past(self, step: Step, number: int) -> bool:
        """``frontdesk_past``: the loop's index compared with a limit."""
        limit = self._reads.limits[number]
        index = step.index0 if limit.index == "index0" else step.index
        return OPERATORS[limit.operator](index, self._value_of(limit, self._limited[number]))

    def _value_of(self, limit: Limit, value: Any) -> Any:
        if not limit.attribute or isinstance(value, Undefined):
            return value
        return self._environment.getattr(value, limit.attribute)

    def _ends_messages(self, values: Any) -> bool:
        """Whether ``values`` is the messages from some message on: the very same objects."""
        if not isinstance(values, list):
            return False
        items = cast("list[Any]", values)
        return len(items) <= len(self._messages) and all(map(is_, items, self._messages[len(self._messages) - len(items) :]))

    def _fingerprint(self, values: Sequence[Any], offsets: Sequence[int]) -> bytes | None:
        seen = [self._seen(name, value) for name, value in zip(self._reads.values, values, strict=True)]
        try:
            return orjson.dumps([offsets, seen], default=_special, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
        except TypeError:
            return None

    def _seen(self, name: str, value: Any) -> Any:
        attributes = self._reads.attributes.get(name)
        if attributes is None or not isinstance(value, Namespace):
            return value
        return {attribute: getattr(value, attribute, self.undefined(name=attribute)) for attribute in attributes}


def _special(value: Any) -> Any:
    if isinstance(value, Undefined):
        return {"undefined": True}
    raise TypeError


def _join(pieces: Sequence[str]) -> bytes:
    return "".join(piece for piece in pieces if piece is not MARK).encode()
