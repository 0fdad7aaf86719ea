"""Owns banking's database: read once, and views on it that are isolated from one another. Agent and user share the view of their episode.

Its tables hold plain dictionaries under ``data`` beside a text called ``notes``, so `cow.Table` does the work and only the outside differs
from `cow.Database`. Refuses tables that tau2's `TransactionalDB` does not have.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

from services.agent_runner.domains.cow import GONE, Table, isolated, merged

Json = dict[str, Any]

TABLES = (
    "users",
    "accounts",
    "debit_cards",
    "referrals",
    "credit_card_applications",
    "user_discoverable_tools",
    "user_discoverable_tool_calls",
    "verification_history",
    "credit_card_transaction_history",
    "cash_back_disputes",
    "bank_account_transaction_history",
    "credit_card_accounts",
    "agent_discoverable_tools",
    "task_config",
    "human_transfer_requests",
    "transaction_disputes",
    "credit_card_orders",
    "debit_card_orders",
    "credit_card_closure_reasons",
    "credit_card_account_flags",
    "credit_limit_increase_requests",
    "payment_history",
    "debit_card_disputes",
)
"""tau2's tables. The port has one more, `interest_discrepancy_reports`; reports written to it are in no end state of tau2's."""
WRITTEN_WHILE_ITERATED = ("debit_cards",)
"""Tables whose records a tool writes to while it iterates: their (few) records are copied before the first call."""


class BankingData:
    """The database as its file has it. Never written to after this. Raises ValueError for what tau2 would refuse."""

    def __init__(self, raw: Json) -> None:
        checked(raw)
        self.notes: dict[str, str] = {name: raw.get(name, {}).get("notes", "") for name in TABLES}
        self.tables: dict[str, dict[str, Json]] = {name: raw.get(name, {}).get("data", {}) for name in TABLES}
        self._rows: dict[str, dict[str, str]] = {}
        self._texts: dict[str, str] = {}

    def rows(self, table: str) -> dict[str, str]:
        """Key -> the record's canonical JSON, made once. Not to be written to."""
        if table not in self._rows:
            self._rows[table] = {key: canonical(record) for key, record in self.tables[table].items()}
        return self._rows[table]

    def text(self, table: str) -> str:
        """The whole table's canonical JSON, made once."""
        if table not in self._texts:
            self._texts[table] = table_text(self.rows(table), self.notes[table])
        return self._texts[table]


class BankingTable:
    """One table of one view, in the shape that the tools expect."""

    __slots__ = ("data", "notes")

    def __init__(self, data: Table, notes: str) -> None:
        self.data = data
        self.notes = notes


class TransactionalDB:
    """One episode's database: a `BankingTable` per name in `TABLES`, as attributes."""

    def __init__(self, base: BankingData) -> None:
        self._base = base
        # Table asks of a record only that `isolated` can copy it.
        self._tables = {name: BankingTable(Table(cast("Any", records)), base.notes[name]) for name, records in base.tables.items()}
        self.__dict__.update(self._tables)
        for name in WRITTEN_WHILE_ITERATED:
            for key in base.tables[name]:
                self._tables[name].data[key]

    def records(self, table: str) -> Table:
        """A table's records by key."""
        return self._tables[table].data

    def merge(self, data: Json) -> None:
        """Merges a task's ``initialization_data`` in, dictionaries recursively, as tau2's `update_db` does. Raises ValueError."""
        checked(data)
        for name, update in data.items():
            table = self._tables[name]
            table.notes = update.get("notes", table.notes)
            for key, record in update.get("data", {}).items():
                current: Json = table.data.peek(key) if key in table.data else {}
                table.data[key] = isolated(merged(current, record))

    def sha256(self) -> str:
        """tau2's hash of the whole database: sha256 of its JSON with sorted keys. Only records that were looked at are read for it."""
        tables = ", ".join(f"{json.dumps(name)}: {self._text(name)}" for name in sorted(TABLES))
        return hashlib.sha256(f"{{{tables}}}".encode()).hexdigest()

    def _text(self, name: str) -> str:
        table, rows = self._tables[name], self._base.rows(name)
        touched = {key: None if record is GONE else canonical(record) for key, record in table.data.touched().items()}
        changed = {key: text for key, text in touched.items() if text != rows.get(key)}
        if not changed and table.notes == self._base.notes[name]:
            return self._base.text(name)
        return table_text({key: text for key, text in (rows | changed).items() if text is not None}, table.notes)


def table_text(rows: Mapping[str, str], notes: str) -> str:
    """A table's canonical JSON from that of its records."""
    listed = ", ".join(f"{json.dumps(key)}: {rows[key]}" for key in sorted(rows))
    return f'{{"data": {{{listed}}}, "notes": {json.dumps(notes)}}}'


@contextmanager
def forgetting(records: MutableMapping[str, Any]) -> Generator[None, None, None]:
    """Takes out again what is added to a table within the context."""
    before = frozenset(records)
    yield
    for key in frozenset(records) - before:
        del records[key]


def canonical(record: Json) -> str:
    """The JSON that tau2 hashes: 5 and 5.0 differ, the order of keys does not matter."""
    return json.dumps(record, sort_keys=True, default=str)


def checked(data: Json) -> None:
    """Raises ValueError, naming table and record, where ``data`` is no part of a banking database."""
    for name, table in data.items():
        if name not in TABLES:
            raise ValueError(f"banking_knowledge: the database has no table {name!r}; it has {', '.join(TABLES)}")
        if not isinstance(table, dict) or not isinstance(cast("Json", table).get("data", {}), dict):
            raise ValueError(f'banking_knowledge: table {name!r} must be an object with its records under "data"')
        for key, record in cast("Json", table).get("data", {}).items():
            if not isinstance(record, dict):
                raise ValueError(f"banking_knowledge: {name}/{key} must be an object")
