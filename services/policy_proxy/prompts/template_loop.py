"""Owns showing that a chat template may go on from the middle of a conversation, and rewriting it so that it can.

A chat template writes a head, then loops over the messages, then writes a tail. Where what the loop writes for a message depends on
nothing but messages up to the next one and on values that are there when the loop begins, a longer conversation is the text up to its
old last message and what the loop writes from there on. That is shown from the template's syntax tree. Refuses (returns None) whatever
it cannot show: state that one pass of the loop leaves to the next, the conversation's length, searches through it, time and chance.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

ITEMS, AT, PAST, ITEM, LOOP = "frontdesk_items", "frontdesk_at", "frontdesk_past", "frontdesk_item", "frontdesk_loop"
"""What a rewritten template is rendered with: the items to loop over, reading a list by index, comparing the loop's index with a limit,
and the mark before each item; and the name under which it sees its loop."""
LOOP_VALUES = frozenset({"first", "last", "index", "index0", "previtem", "nextitem"})
"""What of ``loop`` looks at most one message ahead."""
UNSTEADY = frozenset({"strftime_now", "lipsum", "cycler", "joiner", "self"})
UNSTEADY_FILTERS = frozenset({"random"})
COMPARISONS = frozenset({"gt", "gteq", "lt", "lteq"})
MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class Limit:
    """A comparison of the loop's index with a value that is set before the loop, such as where the last question stands."""

    name: str
    attribute: str
    """Of that name; "" for itself."""
    operator: str
    index: str
    """``index`` or ``index0``."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What a rewritten loop depends on beside its messages; the arguments of ``frontdesk_items`` after the items themselves."""

    values: tuple[str, ...]
    """Names set before the loop."""
    attributes: dict[str, tuple[str, ...]]
    """For a name that is only read by attribute (a namespace): those attributes."""
    lists: tuple[str, ...]
    """Lists of messages that the loop reads by index."""
    limits: tuple[Limit, ...]


class _Refused(Exception):
    """Not shown."""


def rewrite(tree: nodes.Template) -> Reads | None:
    """Rewrites ``tree`` in place so that its loop over the messages can be told where to begin; None where that might change its text."""
    loops = [index for index, node in enumerate(tree.body) if isinstance(node, nodes.For)]
    if not loops:
        return None
    head, loop = tree.body[: loops[-1]], cast("nodes.For", tree.body[loops[-1]])
    try:
        return _rewrite_loop(tree, head, loop)
    except _Refused:
        return None


def _rewrite_loop(tree: nodes.Template, head: Sequence[nodes.Node], loop: nodes.For) -> Reads:
    if loop.test is not None or loop.else_ or loop.recursive:
        raise _Refused
    macros = {node.name for node in head if isinstance(node, nodes.Macro)}
    if len(macros) != len(list(tree.find_all(nodes.Macro))):
        raise _Refused
    lists = {MESSAGES, loop.iter.name} if isinstance(loop.iter, nodes.Name) else {MESSAGES}
    before = set(_set_at_top(head))
    inside = set(_stored([loop.target, *loop.body]))
    if inside & (before | lists | macros) or before & macros:
        raise _Refused
    for node in head:
        if isinstance(node, nodes.Macro):
            _check_macro(node, before | lists)
    body = _LoopBody(lists, inside, before)
    loop.body = [body.visit(node) for node in loop.body]
    values = (_loaded(loop.body) & before) - lists
    # A template that is told whether to add a generation prompt may ask for it in the loop too.
    values |= _loaded(loop.body) & {"add_generation_prompt"}
    reads = Reads(tuple(sorted(values)), _attributes(loop.body, values), tuple(sorted(body.indexed)), tuple(body.limits))
    loop.target = nodes.Tuple([loop.target, nodes.Name(LOOP, "store")], "store")
    loop.iter = _call(
        ITEMS, [cast("nodes.Expr", loop.iter), _list(reads.values), _list(reads.lists), _list(limit.name for limit in reads.limits)]
    )
    loop.body = [nodes.Output([nodes.Name(ITEM, "load")]), *loop.body]
    return reads


class _LoopBody(NodeTransformer):
    """Puts our ``loop`` and our reading by index into the loop's body, and refuses what is not steady."""

    def __init__(self, lists: set[str], own: set[str], before: set[str]) -> None:
        self._lists = lists
        self._own = own
        self._before = before
        self._depth = 0
        self.indexed: set[str] = set()
        self.limits: list[Limit] = []

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.else_:
            raise _Refused
        node.iter = self.visit(node.iter)
        self._depth += 1
        node.test = None if node.test is None else self.visit(node.test)
        node.body = [self.visit(item) for item in node.body]
        self._depth -= 1
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802
        if self._depth == 0 and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            if node.attr not in LOOP_VALUES:
                raise _Refused
            return nodes.Getattr(nodes.Name(LOOP, "load"), node.attr, "load")
        return self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        of = node.node
        if not isinstance(of, nodes.Name) or of.name not in self._lists or isinstance(node.arg, nodes.Slice):
            return self.generic_visit(node)
        self.indexed.add(of.name)
        return _call(AT, [of, self.visit(node.arg), nodes.Name(LOOP, "load")])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        limit = self._limit(node) if self._depth == 0 else None
        if limit is None:
            return self.generic_visit(node)
        self.limits.append(limit)
        return _call(PAST, [nodes.Name(LOOP, "load"), nodes.Const(len(self.limits) - 1)])

    def _limit(self, node: nodes.Compare) -> Limit | None:
        left, right = node.expr, node.ops[0]
        value = right.expr.node if isinstance(right.expr, nodes.Getattr) else right.expr
        if len(node.ops) > 1 or right.op not in COMPARISONS or not isinstance(left, nodes.Getattr):
            return None
        if not isinstance(left.node, nodes.Name) or left.node.name != "loop" or left.attr not in ("index", "index0"):
            return None
        if not isinstance(value, nodes.Name) or value.name not in self._before - self._lists:
            return None
        return Limit(value.name, right.expr.attr if isinstance(right.expr, nodes.Getattr) else "", right.op, left.attr)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802
        if node.name in self._lists or node.name in UNSTEADY or (node.name == "loop" and self._depth == 0):
            raise _Refused
        return node

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:  # noqa: N802
        if node.name not in self._own:
            raise _Refused
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        if node.name in UNSTEADY_FILTERS:
            raise _Refused
        return self.generic_visit(node)

    def visit_Break(self, node: nodes.Break) -> nodes.Node:  # noqa: N802
        if self._depth == 0:
            raise _Refused
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise _Refused

    visit_CallBlock = visit_Block = visit_Include = visit_Import = visit_FromImport = _refuse


def _check_macro(macro: nodes.Macro, outer: set[str]) -> None:
    """A macro may use its parameters, names of its own, other macros, and what the template is rendered with."""
    parameters = {name.name for name in macro.args}
    stored = set(_stored(macro.body))
    loaded = (_loaded(macro.body) - parameters) | _loaded(macro.defaults)
    changed = {node.name for node in macro.find_all(nodes.NSRef)}
    unsteady = any(node.name in UNSTEADY_FILTERS for node in macro.find_all(nodes.Filter))
    reads = loaded & (outer | UNSTEADY | {"add_generation_prompt"})
    if unsteady or reads or stored & outer or changed - stored - parameters:
        raise _Refused


def _set_at_top(body: Iterable[nodes.Node]) -> Iterator[str]:
    """Names that are set when ``body`` has run: those set in an inner scope are gone by then."""
    for node in body:
        if isinstance(node, nodes.If):
            for branch in (node.body, node.elif_, node.else_):
                yield from _set_at_top(branch)
        elif isinstance(node, nodes.Assign | nodes.AssignBlock):
            yield from _stored([node.target])
        elif isinstance(node, nodes.Import):
            yield node.target
        elif isinstance(node, nodes.FromImport):
            raise _Refused


def _names(body: Iterable[nodes.Node]) -> Iterator[nodes.Name]:
    for node in body:
        if isinstance(node, nodes.Name):
            yield node
        yield from node.find_all(nodes.Name)


def _stored(body: Iterable[nodes.Node]) -> Iterator[str]:
    return (name.name for name in _names(body) if name.ctx != "load")


def _loaded(body: Iterable[nodes.Node]) -> set[str]:
    return {name.name for name in _names(body) if name.ctx == "load"}


def _attributes(body: Sequence[nodes.Node], names: set[str]) -> dict[str, tuple[str, ...]]:
    read = [node for item in body for node in _with_descendants(item, nodes.Getattr) if isinstance(node.node, nodes.Name)]
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        attributes = [node.attr for node in read if cast("nodes.Name", node.node).name == name]
        if len(attributes) == sum(node.name == name for node in _names(body)):
            found[name] = tuple(sorted(set(attributes)))
    return found


def _with_descendants(node: nodes.Node, kind: type[nodes.Getattr]) -> Iterator[nodes.Getattr]:
    if isinstance(node, kind):
        yield node
    yield from node.find_all(kind)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)


def _list(names: Iterable[str]) -> nodes.List:
    return nodes.List([nodes.Name(name, "load") for name in names])
