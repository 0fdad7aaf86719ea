"""Every key has one name, one type, one line in docs/store.md, and no other file spells one."""

import re
from pathlib import Path

import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_group, make_trajectory

from services.trajectory_store.keys import EXPIRES, TRIALS, Keys

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)
ROOT = Path(__file__).parents[2]


def members() -> dict[str, str]:
    """Name of a key -> "type: what is in it"."""
    found = {name: member for name, member in vars(Keys).items() if not name.startswith("_") and name != "of_trial"}
    return {name: (member.fget if isinstance(member, property) else member).__doc__ or "" for name, member in found.items()}


def key_of(name: str) -> str:
    here = Keys("")
    attribute = getattr(here, name)
    return attribute if isinstance(attribute, str) else attribute("…")


def table() -> list[str]:
    rows = [f"| `{TRIALS}` | set | {_cell('`experiment/trial` of every trial that was ever written to')} | never |"]
    for name, text in members().items():
        kind, _, what = text.partition(": ")
        rows.append(f"| `{key_of(name)}` | {kind} | {_cell(what.rstrip('.'))} | {EXPIRES.get(name, 'never')} |")
    return rows


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("|", r"\|")


def test_the_table_in_the_docs_is_complete() -> None:
    lines = (ROOT / "docs" / "store.md").read_text(encoding="utf-8").splitlines()
    missing = [row for row in table() if row not in lines]
    assert missing == [], "copy these rows into docs/store.md"
    assert set(EXPIRES) <= set(members())


@pytest.mark.parametrize("name", sorted(members()))
def test_the_type_in_the_docs_is_a_type_of_redis(name: str) -> None:
    assert members()[name].partition(":")[0] in {"hash", "set", "zset", "list", "string", "stream"}


def test_what_redis_holds_is_what_the_table_says(store: StoreClient, redis_server: RedisServer) -> None:
    store.enqueue([*make_group("g1", 2), *make_group("g2", 1)])
    [lease] = store.lease()
    store.play_session("s1")
    store.put(make_trajectory(lease["request"], session_id="s1"), lease["lease_id"])
    store.call("PUT", "/v1/documents/d", {})
    types = {key_of(name).partition(":")[0]: text.partition(":")[0] for name, text in members().items()}
    with redis.Redis.from_url(redis_server.url) as raw:
        found = {key.decode(): raw.type(key).decode() for key in raw.scan_iter(f"{KEYS.prefix}*")}
    assert found
    for key, kind in found.items():
        assert types[key.removeprefix(KEYS.prefix).partition(":")[0]] == kind, key


def test_nobody_else_spells_a_key() -> None:
    folder = ROOT / "services" / "trajectory_store"
    sources = [path for path in folder.rglob("*.*") if path.suffix in (".py", ".lua") and path.name != "keys.py"]
    spelled = [path.name for path in sources if re.search(r"['\"`]fd:", path.read_text(encoding="utf-8"))]
    assert spelled == []
