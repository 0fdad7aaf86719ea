"""Owns copy-on-write databases: one validated database per process, and views on it, isolated from one another, that cost microseconds.

A record (a user, an order) is copied when it is read by key, nested dictionaries of models entry by entry, so a view holds only what its
episode looked at. Iterating gives base records that must not be written to; no tool of tau2 writes to what it iterates over, which the
port-parity tests watch. Refuses to know any domain: tables and records come from the pydantic model that it is given.
"""

import hashlib
import json
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, cast

from pydantic import BaseModel

Json = dict[str, Any]

ATOMS = frozenset({str, int, float, bool, type(None)})
GONE: Any = object()
"""Stands in a view for a record that was deleted there."""


def isolated(value: Any) -> Any:
    """A copy that shares nothing that can change with ``value``. Entries of dictionaries of models are copied on first access."""
    if type(value) in ATOMS:
        return value
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: isolated(field) for name, field in value.__dict__.items() if type(field) not in ATOMS})
    if isinstance(value, list):
        return [isolated(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        entries = cast("Json", value)
        first = next(iter(entries.values()), None)
        return LazyDict(entries) if isinstance(first, BaseModel) else {key: isolated(entry) for key, entry in entries.items()}
    return value


def unchanged(copy: Any, original: Any) -> bool:
    """Whether a copy made by `isolated` is still what it was made from; False where only its JSON can tell (5 and 5.0 are equal in Python).

    Copies share their numbers and texts with the original, so most comparisons end at once.
    """
    if copy is original:
        return True
    if isinstance(copy, BaseModel):
        return type(copy) is type(original) and unchanged(copy.__dict__, original.__dict__)
    if isinstance(copy, list) and isinstance(original, list):
        ours, theirs = cast("list[Any]", copy), cast("list[Any]", original)
        return len(ours) == len(theirs) and all(map(unchanged, ours, theirs))
    if isinstance(copy, dict) and isinstance(original, dict):
        # Past LazyDict, which would make copies only for them to be compared.
        mine, base = cast("Json", copy), cast("Json", original)
        return mine.keys() == base.keys() and all(unchanged(value, base[key]) for key, value in dict[str, Any].items(mine))
    return False


class LazyDict(dict[str, Any]):
    """A dictionary whose entries are those of ``shared`` until they are asked for, then copies of them.

    A real dict with the real entries in it, so pydantic's serializer sees it whole without copying anything.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: Mapping[str, Any]) -> None:
        super().__init__(shared)
        self._shared = shared

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if value is self._shared.get(key) and type(value) not in ATOMS:
            value = isolated(value)
            super().__setitem__(key, value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As dict's."""
        try:
            return self[key]
        except KeyError:
            return default

    def pop(self, key: str, *default: Any) -> Any:
        """As dict's; what leaves the dictionary is a copy."""
        return isolated(super().pop(key, *default))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As dict's."""
        return self[key] if key in self else super().setdefault(key, default)

    def popitem(self) -> tuple[str, Any]:
        """As dict's; what leaves the dictionary is a copy."""
        key, value = super().popitem()
        return key, isolated(value)

    def values(self) -> Any:
        """As dict's; copies everything that is still shared."""
        self._own_all()
        return super().values()

    def items(self) -> Any:
        """As dict's; copies everything that is still shared."""
        self._own_all()
        return super().items()

    def _own_all(self) -> None:
        for key in list(self):
            self[key]

    def __copy__(self) -> Json:
        return dict(self.items())

    def copy(self) -> Json:
        """As dict's; what is still shared is copied."""
        return dict(self.items())

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)


class Base:
    """A database as it is read: a validated model whose fields are tables, ``{key: record}``. Never written to after this."""

    def __init__(self, database: BaseModel) -> None:
        self._model: type[BaseModel] = type(database)
        self.tables: dict[str, dict[str, BaseModel]] = {name: getattr(database, name) for name in self._model.model_fields}
        self._texts: dict[str, dict[str, str]] = {name: {} for name in self.tables}

    def text(self, table: str, key: str) -> str | None:
        """The record's canonical JSON, made once; None where there is no such record."""
        texts = self._texts[table]
        if key not in texts and key in self.tables[table]:
            texts[key] = canonical(self.tables[table][key])
        return texts.get(key)

    def record(self, table: str, key: str, data: Json) -> BaseModel:
        """A new record of a table. Raises pydantic's ValidationError, which names the table, the key and the field."""
        return getattr(self._model.model_validate({name: {} for name in self.tables} | {table: {key: data}}), table)[key]


def canonical(record: BaseModel) -> str:
    """The JSON that tau2 hashes: 5 and 5.0 differ, the order of keys does not matter, order in lists does."""
    return json.dumps(record.model_dump(warnings=False), sort_keys=True, default=str)


class Table(MutableMapping[str, Any]):
    """One table of one view. ``table[key]`` gives a record of the view's own; ``values()`` and ``items()`` are for reading only."""

    __slots__ = ("_base", "_own")

    def __init__(self, base: dict[str, BaseModel]) -> None:
        self._base = base
        self._own: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        own = self._own.get(key)
        if own is None:
            own = self._own[key] = isolated(self._base[key])
        elif own is GONE:
            raise KeyError(key)
        return own

    def __setitem__(self, key: str, record: Any) -> None:
        self._own[key] = record

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        if key in self._base:
            self._own[key] = GONE
        else:
            del self._own[key]

    def __contains__(self, key: object) -> bool:
        return self._own[cast("str", key)] is not GONE if key in self._own else key in self._base

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def values(self) -> ValuesView[Any]:
        """Every record, not to be written to."""
        return self._whole().values()

    def items(self) -> ItemsView[str, Any]:
        """Every key and record, not to be written to."""
        return self._whole().items()

    def _whole(self) -> dict[str, Any]:
        """The table as it stands, base records in their order; made in one go because tools walk tables of hundreds of records often."""
        if not self._own:
            return self._base
        whole = {**self._base, **self._own}
        return {key: record for key, record in whole.items() if record is not GONE} if GONE in self._own.values() else whole

    def peek(self, key: str) -> Any:
        """A record that will not be written to: the view's own, else the base's. Raises KeyError."""
        own = self._own.get(key)
        return self._base[key] if own is None else own

    def touched(self) -> Mapping[str, Any]:
        """Key -> the view's own record or `GONE`, whether it was changed or only read."""
        return self._own


class Database:
    """One episode's database: a `Table` per field of the model, as attributes, in the place where tools expect the model itself."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._tables = {name: Table(records) for name, records in base.tables.items()}
        self.__dict__.update(self._tables)

    def merge(self, data: Json) -> None:
        """Merges a task's ``initialization_data`` in, dictionaries recursively, as tau2's `update_db` does. Raises ValueError."""
        for name, records in data.items():
            if name not in self._tables:
                raise ValueError(f"initialization_data: the database has no table {name!r}; it has {', '.join(self._tables)}")
            if not isinstance(records, dict):
                raise ValueError(f"initialization_data: {name} must be an object of records by key, not {type(records).__name__}")
            for key, update in cast("Json", records).items():
                self._merge_record(name, key, update)

    def _merge_record(self, name: str, key: str, update: Any) -> None:
        table = self._tables[name]
        current = table.peek(key).model_dump() if key in table else None
        table[key] = self._base.record(name, key, merged(current, update))

    def delta(self) -> dict[str, dict[str, str | None]]:
        """Table -> key -> canonical JSON of each record that is not as in the base; None where it was deleted."""
        return {name: changed for name, table in self._tables.items() if (changed := self._changed(name, table))}

    def _changed(self, name: str, table: Table) -> dict[str, str | None]:
        base = self._base.tables[name]
        suspects = {key: record for key, record in table.touched().items() if not unchanged(record, base.get(key))}
        texts = {key: None if record is GONE else canonical(record) for key, record in suspects.items()}
        return {key: text for key, text in texts.items() if text != self._base.text(name, key)}

    def fingerprint(self) -> str:
        """sha256 of the delta: equal for two views on equal bases exactly if their contents are equal."""
        return hashlib.sha256(json.dumps(self.delta(), sort_keys=True).encode()).hexdigest()

    def sha256(self) -> str:
        """tau2's hash of the whole database: sha256 of its JSON with sorted keys."""
        delta = self.delta()
        tables = (f"{json.dumps(name)}: {{{self._rows(name, delta.get(name, {}))}}}" for name in sorted(self._tables))
        return hashlib.sha256(f"{{{', '.join(tables)}}}".encode()).hexdigest()

    def _rows(self, name: str, delta: dict[str, str | None]) -> str:
        keys = sorted(self._tables[name])
        return ", ".join(f"{json.dumps(key)}: {delta.get(key) or self._base.text(name, key)}" for key in keys)


def merged(current: Any, update: Any) -> Any:
    """``update`` laid over ``current``: dictionaries key by key, everything else replaced."""
    if not isinstance(current, dict) or not isinstance(update, dict):
        return update
    below, above = cast("Json", current), cast("Json", update)
    return below | {key: merged(below.get(key), value) for key, value in above.items()}
