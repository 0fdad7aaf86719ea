"""Filters, search, cursors, server-sent events, and trials that share a store."""

import json
import threading
import time
from typing import Any

import httpx
import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, make_group, make_request, make_trajectory

from services.common.ids import new_id
from services.trajectory_store.fairness import Demand, shares
from services.trajectory_store.keys import Keys

KEYS = Keys.of_trial(EXPERIMENT, TRIAL)


def listed(store: StoreClient, query: str) -> list[str]:
    return [item["episode_id"] for item in store.call("GET", f"/v1/trajectories?{query}")["items"]]


def test_every_filter_filters(store: StoreClient) -> None:
    for name, reward, versions, text in (
        ("a", 0.0, [0], "my phone is dead"),
        ("b", 0.5, [0, 1], 'she said "Reset\nit"'),
        ("c", 1.0, [2], "ÄRGER mit dem Router"),
    ):
        update = {"policy_versions": versions, "messages": [{"role": "user", "content": text}]}
        store.put(make_trajectory(make_request(name), reward=reward).model_copy(update=update))
    store.put(make_trajectory(make_request("d"), who="policy"))
    assert listed(store, "version=0") == ["a", "b"]
    assert listed(store, "min_reward=0.5") == ["b", "c"]
    assert listed(store, "max_reward=0.5") == ["a", "b"], "an episode without a reward is in no range"
    assert listed(store, "min_reward=0.2&max_reward=0.8&version=1") == ["b"]
    assert listed(store, "text=phone") == ["a"]
    assert store.call("GET", "/v1/trajectories", params={"text": '"reset\nit'})["items"][0]["episode_id"] == "b"
    assert listed(store, "text=ärger") == ["c"]
    assert listed(store, "text=nowhere") == []
    assert store.status("GET", "/v1/trajectories?text=")[0] == 422
    page = store.call("GET", "/v1/trajectories?limit=2")
    assert page["more"]
    rest = store.call("GET", f"/v1/trajectories?after={page['next']}")
    assert ([item["episode_id"] for item in rest["items"]], rest["more"]) == (["c", "d"], False)


class Listener(threading.Thread):
    """Reads events until it has seen one of a name."""

    def __init__(self, store: StoreClient, last: str, until: str, **headers: str) -> None:
        super().__init__(daemon=True)
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self._url = f"{store.http.base_url}/v1/events?after={last}" if last else f"{store.http.base_url}/v1/events"
        self._until, self._headers = until, headers
        self.connected = threading.Event()

    def run(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=20) as answer:
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                self.connected.set()
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                elif "event" in event:
                    self.events.append((event.get("id", ""), event["event"], json.loads(event["data"])))
                    if event["event"] == self._until:
                        return
                    event = {}


def test_events_tell_the_life_of_a_group_and_resume(store: StoreClient) -> None:
    live = Listener(store, "", "batch")
    live.start()
    assert live.connected.wait(10)
    store.enqueue(make_group("g1", 1))
    [lease] = store.lease()
    store.put(make_trajectory(lease["request"]), lease["lease_id"])
    batch = store.lease_batch()
    live.join(10)
    assert [name for _, name, _ in live.events] == ["enqueued", "leased", "trajectory", "group_ready", "batch"]
    trajectory = live.events[2]
    assert (trajectory[2]["episode_id"], trajectory[2]["status"]) == ("g1.0", "scored")

    store.ack(batch)
    store.call("POST", "/v1/policy_versions", {"version": 1, "path": "v1"})
    resumed = Listener(store, "", "policy_version", **{"Last-Event-ID": trajectory[0]})
    resumed.start()
    resumed.join(10)
    assert [name for _, name, _ in resumed.events] == ["group_ready", "batch", "batch", "policy_version"]
    assert resumed.events[2][2]["state"] == "acked"
    assert store.status("GET", "/v1/events?after=junk")[0] == 422


def test_a_listener_learns_that_it_missed_events(store: StoreClient, redis_server: RedisServer) -> None:
    for number in range(3):
        store.call("POST", "/v1/policy_versions", {"version": number, "path": "v"})
    with redis.Redis.from_url(redis_server.url) as raw:
        first = raw.xrange(KEYS.events, count=1)[0][0].decode()
        raw.xtrim(KEYS.events, maxlen=1, approximate=False)
    listener = Listener(store, first, "policy_version")
    listener.start()
    listener.join(10)
    assert [name for _, name, _ in listener.events] == ["gap", "policy_version"]


@pytest.fixture
def two(store: StoreClient) -> list[StoreClient]:
    lab = new_id("lab")  # the shared store remembers trials that another test's empty Redis has forgotten
    return [StoreClient(f"{str(store.http.base_url).rstrip('/')}/t/{lab}/{name}") for name in ("one", "two")]


def trial(client: StoreClient) -> str:
    return str(client.http.base_url).rstrip("/").partition("/t/")[2]


def test_the_url_names_the_trial(store: StoreClient, two: list[StoreClient]) -> None:
    one, other = two
    assert one.status("GET", "/v1/stats")[0] == 404, "reading makes no trial"
    one.enqueue(make_group("g1", 2))
    other.enqueue(make_group("g1", 1))
    store.enqueue(make_group("g1", 3))
    assert [client.stats()["queued"] for client in (one, other, store)] == [2, 1, 3]
    assert store.call("GET", "/v1/trials")["trials"][:2] == [trial(one), trial(other)]
    [lease] = one.lease()
    one.put(make_trajectory(lease["request"]), lease["lease_id"])
    assert other.status("GET", "/v1/trajectories/g1.0")[0] == 404
    assert store.status("GET", "/t/bad%20name/x/v1/stats")[0] == 404
    assert store.status("PUT", "/t/bad%20name/x/v1/documents/d", {})[0] == 400
    [first, second] = one.lease(limit=2, ttl_s=0.05) + other.lease(ttl_s=0.05)
    time.sleep(0.8)
    assert [client.stats()["running"] for client in two] == [0, 0], "the leases of every trial are swept"
    assert first["request"] != second["request"]
    for client in two:
        client.assert_balanced()
        client.close()


def test_a_worker_shares_its_places_between_trials(store: StoreClient, two: list[StoreClient]) -> None:
    one, other = two
    one.enqueue(make_group("g1", 10))
    other.enqueue(make_group("g1", 3))
    names = [trial(one), trial(other)]
    body = {"worker_id": "w1", "limit": 4, "trials": [*names, "lab/none"]}
    leases = store.call("POST", "/v1/rollouts/lease", body)["leases"]
    assert sorted(lease["trial"] for lease in leases) == sorted(names * 2)
    more = store.call("POST", "/v1/rollouts/lease", {**body, "trials": ["*"]})["leases"]
    assert sorted(lease["trial"] for lease in more) == sorted([names[0]] * 3 + [names[1]])
    by_trial = dict(zip(names, two, strict=True))
    for lease in leases:
        assert by_trial[lease["trial"]].put(make_trajectory(lease["request"]), lease["lease_id"]) == "stored"
    for client in two:
        client.assert_balanced()
        client.close()


def test_places_go_to_the_trial_with_the_fewest_running() -> None:
    assert shares([Demand("a", 10, 0), Demand("b", 10, 0)], 5) == {"a": 3, "b": 2}
    assert shares([Demand("a", 10, 8), Demand("b", 10, 0)], 6) == {"b": 6}
    assert shares([Demand("a", 1, 0), Demand("b", 0, 0), Demand("c", 10, 5)], 4) == {"a": 1, "c": 3}
    assert shares([], 4) == {}
