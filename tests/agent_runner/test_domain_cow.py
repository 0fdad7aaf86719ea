"""Copy-on-write databases: views share a base that nothing they do can change, and know exactly how they differ from it."""

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from services.agent_runner.domains.cow import Base, Database, LazyDict, isolated


class Card(BaseModel):
    id: str
    amount: float = 0


class Person(BaseModel):
    name: str
    cards: dict[str, Card] = {}
    tags: list[str] = []
    extra: dict[str, list[int]] = {}


class Shop(BaseModel):
    model_config = ConfigDict(extra="forbid")

    people: dict[str, Person]
    orders: dict[str, Card]


def shop() -> Shop:
    people = {
        name: Person(name=name, cards={"a": Card(id="a", amount=5), "b": Card(id="b")}, tags=["x"], extra={"n": [1]})
        for name in ("ann", "bob", "cid")
    }
    return Shop(people=people, orders={"o1": Card(id="o1", amount=3)})


def view(base: Base) -> Any:
    return Database(base)


def full_hash(model: BaseModel) -> str:
    return hashlib.sha256(json.dumps(model.model_dump(), sort_keys=True, default=str).encode()).hexdigest()


def test_writing_to_one_view_shows_in_no_other_and_not_in_the_base():
    base = Base(shop())
    one, other = view(base), view(base)
    person = one.people["ann"]
    person.name = "eve"
    person.tags.append("y")
    person.cards["a"].amount = 6
    person.cards.pop("b")
    person.extra["n"].append(2)
    one.orders["o2"] = Card(id="o2")
    del one.people["cid"]
    assert (len(one.people), "cid" in one.people, list(one.orders)) == (2, False, ["o1", "o2"])
    assert [person.name for person in one.people.values()] == ["eve", "bob"]
    assert other.people["ann"] == shop().people["ann"]
    assert other.sha256() == full_hash(shop()) == view(base).sha256()
    assert base.tables["people"] == shop().people


def test_delta_has_what_differs_and_nothing_that_was_only_read():
    base = Base(shop())
    one = view(base)
    assert [person.name for person in one.people.values()] == ["ann", "bob", "cid"]
    _ = one.people["ann"].cards["a"].amount, dict(one.people.items())
    assert one.delta() == {}
    one.people["bob"].tags.append("y")
    del one.people["cid"]
    one.orders["o9"] = Card(id="o9")
    delta = one.delta()
    assert {table: sorted(keys) for table, keys in delta.items()} == {"people": ["bob", "cid"], "orders": ["o9"]}
    assert delta["people"]["cid"] is None
    one.people["bob"].tags.pop()
    assert "bob" not in one.delta()["people"]


def test_five_and_five_point_zero_differ():
    base = Base(shop())
    one, other = view(base), view(base)
    one.orders["o1"].amount = 3.0
    other.orders["o1"].amount = 3
    assert (one.delta(), one.fingerprint()) == ({}, view(base).fingerprint())
    assert other.fingerprint() != one.fingerprint()
    assert other.sha256() != one.sha256()


def test_a_deleted_record_can_be_set_again_but_not_deleted_twice():
    one = view(Base(shop()))
    del one.people["ann"]
    with pytest.raises(KeyError):
        one.people["ann"]
    with pytest.raises(KeyError):
        del one.people["ann"]
    one.people["ann"] = shop().people["ann"]
    assert one.delta() == {}
    one.orders["o2"] = Card(id="o2")
    del one.orders["o2"]
    assert one.delta() == {}
    assert "o2" not in one.orders
    with pytest.raises(KeyError):
        one.people["nobody"]


def test_merging_data_is_recursive_and_validated():
    base = Base(shop())
    one = view(base)
    one.merge({"people": {"ann": {"cards": {"a": {"amount": 9}}}, "new": {"name": "new"}}})
    assert (one.people["ann"].cards["a"].amount, one.people["ann"].cards["b"].id, one.people["new"].tags) == (9.0, "b", [])
    assert view(base).delta() == {}
    for data, said in [
        ({"x": {}}, "no table 'x'; it has people, orders"),
        ({"people": []}, "not list"),
        ({"orders": {"o": {}}}, "orders.o.id"),
    ]:
        with pytest.raises(ValueError, match=said):
            view(base).merge(data)


def test_every_way_to_get_an_entry_of_a_nested_dictionary_gives_a_copy():
    ways: list[Any] = [
        lambda cards: cards["a"],
        lambda cards: cards.get("a"),
        lambda cards: cards.pop("a"),
        lambda cards: cards.setdefault("a", None),
        lambda cards: next(iter(cards.values())),
        lambda cards: next(iter(cards.items()))[1],
        lambda cards: cards.copy()["a"],
        lambda cards: copy.copy(cards)["a"],
        lambda cards: copy.deepcopy(cards)["a"],
        lambda cards: cards.popitem()[1],
    ]
    for way in ways:
        shared = {"a": Card(id="a", amount=1)}
        taken = way(LazyDict(shared))
        assert taken == shared["a"]
        taken.amount = 2
        assert shared["a"].amount == 1
    lazy = LazyDict({"a": Card(id="a")})
    assert (lazy.get("b"), lazy.get("b", 3), lazy.pop("b", 4), lazy["a"] is lazy["a"]) == (None, 3, 4, True)


def test_a_nested_dictionary_is_dumped_whole_without_being_copied():
    person = isolated(shop().people["ann"])
    person.cards["a"].amount = 7
    assert person.model_dump()["cards"] == {"a": {"id": "a", "amount": 7}, "b": {"id": "b", "amount": 0.0}}
    assert json.loads(person.model_dump_json())["cards"]["b"] == {"id": "b", "amount": 0.0}


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["read", "rename", "tag", "card", "drop", "delete", "add"]),
        st.sampled_from(["ann", "bob", "cid", "dan"]),
        st.integers(0, 2),
    ),
    max_size=12,
)


def edit(people: Any, kind: str, name: str, number: int) -> None:
    if kind == "add":
        people[name] = Person(name=f"{name}{number}")
    elif name not in people:
        return
    elif kind == "delete":
        del people[name]
    elif kind == "rename":
        people[name].name = f"{name}{number}"
    elif kind == "tag":
        people[name].tags.append(str(number))
    elif kind == "card" and "a" in people[name].cards:
        people[name].cards["a"].amount += number
    elif kind == "drop":
        people[name].cards.pop("b", None)


@given(EDITS)
def test_any_edits_end_as_they_end_on_a_copy_of_the_whole(edits: list[tuple[str, str, int]]):
    base, plain = Base(shop()), shop()
    one = view(base)
    for kind, name, number in edits:
        edit(one.people, kind, name, number)
        edit(plain.people, kind, name, number)
    assert one.sha256() == full_hash(plain)
    assert (one.fingerprint() == view(base).fingerprint()) is (full_hash(plain) == full_hash(shop()))
    assert dict(one.people.items()) == plain.people
    assert base.tables["people"] == shop().people
