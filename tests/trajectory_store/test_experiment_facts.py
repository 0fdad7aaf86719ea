"""Policy versions, metrics, documents, and the routes every service has."""

import pytest
import redis
from store_helpers import EXPERIMENT, TRIAL, RedisServer, StoreClient, StoreThread, make_config, wait_until

from services.trajectory_store.keys import METRICS_KEPT, Keys


def test_a_version_never_changes_its_path(store: StoreClient) -> None:
    assert store.status("GET", "/v1/policy_versions/latest")[0] == 404
    assert store.call("GET", "/v1/stats")["policy_version"] == -1
    first = store.call("POST", "/v1/policy_versions", {"version": 0, "path": "weights/v0"})
    assert first["published_at"] > 0
    assert store.call("POST", "/v1/policy_versions", {"version": 0, "path": "weights/v0", "published_at": 5.0}) == first
    status, problem = store.status("POST", "/v1/policy_versions", {"version": 0, "path": "elsewhere"})
    assert (status, problem["code"]) == (409, "version_published")
    for version in (2, 10, 9):
        store.call("POST", "/v1/policy_versions", {"version": version, "path": f"weights/v{version}", "step": version, "published_at": 7.5})
    latest = {"version": 10, "path": "weights/v10", "step": 10, "published_at": 7.5}
    assert store.call("GET", "/v1/policy_versions/latest") == latest
    assert store.call("GET", "/v1/stats")["policy_version"] == 10


def test_old_metrics_go_and_cursors_stay(store: StoreClient, redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as raw:
        lines = (b'{"step": %d, "values": {}}' % step for step in range(METRICS_KEPT))
        raw.rpush(Keys.of_trial(EXPERIMENT, TRIAL).metrics, *lines)
    for step in range(METRICS_KEPT, METRICS_KEPT + 3):
        store.call("POST", "/v1/metrics", {"step": step, "values": {}})
    page = store.call("GET", "/v1/metrics?after=0&limit=2")
    assert ([line["step"] for line in page["items"]], page["next"]) == ([3, 4], 5)
    page = store.call("GET", f"/v1/metrics?after={METRICS_KEPT + 1}")
    assert ([line["step"] for line in page["items"]], page["next"]) == ([METRICS_KEPT + 1, METRICS_KEPT + 2], METRICS_KEPT + 3)
    assert store.call("GET", f"/v1/metrics?after={page['next']}") == {"items": [], "next": METRICS_KEPT + 3}


def test_metrics_are_appended_and_paged(store: StoreClient) -> None:
    for step in range(5):
        store.call("POST", "/v1/metrics", {"step": step, "values": {"reward": step / 10}, "phase": "ppo", "at": 1.0 + step})
    store.call("POST", "/v1/metrics", {"step": 4, "values": {"reward": 0.4}, "phase": "ppo", "at": 5.0})
    page = store.call("GET", "/v1/metrics?after=0&limit=3")
    assert [line["step"] for line in page["items"]] == [0, 1, 2]
    rest = store.call("GET", f"/v1/metrics?after={page['next']}")
    assert [line["step"] for line in rest["items"]] == [3, 4], "the repeated line was not added"
    assert rest["items"][-1] == {"step": 4, "values": {"reward": 0.4}, "phase": "ppo", "at": 5.0}
    assert store.call("GET", f"/v1/metrics?after={rest['next']}") == {"items": [], "next": 5}
    store.call("POST", "/v1/metrics", {"step": 9, "values": {}})
    assert store.call("GET", "/v1/metrics?after=5")["items"][0]["at"] > 1e9


def test_documents_are_replaced_whole(store: StoreClient) -> None:
    assert store.status("GET", "/v1/documents/experiment")[0] == 404
    store.call("PUT", "/v1/documents/experiment", {"phase": "sft", "step": 1})
    store.call("PUT", "/v1/documents/experiment", {"phase": "rl", "nested": {"é": [1, None]}})
    assert store.call("GET", "/v1/documents/experiment") == {"phase": "rl", "nested": {"é": [1, None]}}
    assert store.status("PUT", "/v1/documents/experiment", [1])[0] == 422
    assert store.status("PUT", "/v1/documents/bad%20name", {})[0] == 422


def test_the_admin_key_guards_every_route_where_one_is_set(store: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "k" * 20)
    assert store.status("GET", "/v1/stats")[0] == 401
    assert store.status("PUT", "/v1/sessions/s1", {})[0] == 401
    assert store.status("POST", "/v1/call_log", [], headers={"Authorization": "Bearer wrong"})[0] == 403
    assert store.status("GET", "/v1/stats", headers={"Authorization": "Bearer " + "k" * 20})[0] == 200
    assert store.status("GET", "/readyz")[0] == 200


def test_trials_that_share_a_redis_do_not_see_each_other(store: StoreClient, redis_server: RedisServer) -> None:
    store.call("PUT", "/v1/documents/experiment", {"phase": "rl"})
    config = make_config(redis_server.url).model_copy(update={"trial_name": "other"})
    with StoreThread(config) as server:
        other = StoreClient(server.url)
        assert other.status("GET", "/v1/documents/experiment")[0] == 404
        other.close()


def test_routes_are_documented_and_counted(store: StoreClient) -> None:
    paths = store.call("GET", "/openapi.json")["paths"]
    assert {"/v1/rollouts/lease", "/v1/sessions/{session_id}/seal", "/v1/batches/{batch_id}/ack", "/v1/audit"} <= set(paths)
    store.open("s1")
    store.begin("s1", "c1")
    gauge = 'frontdesk_trajectory_store_episodes{count="queued",kind="train",trial="store-tests/t0"}'
    wait_until(lambda: gauge in store.http.get("/metrics").text, what="the gauges")
    metrics = store.http.get("/metrics").text
    assert 'http_requests_total{method="POST",route="/v1/call_log",status="200"}' in metrics
