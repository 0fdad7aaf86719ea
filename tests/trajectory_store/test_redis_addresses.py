"""The ways to reach a Redis: password, TLS, Sentinel with a failover, Cluster. All of them real."""

import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from store_helpers import (
    Front,
    RedisServer,
    StoreClient,
    StoreThread,
    episode_ids,
    free_port,
    make_config,
    make_group,
    make_trajectory,
    redis_executable,
    wait_until,
)

from services.trajectory_store.redis_store.connection import BadUrl, connect, without_secrets


def live(store: StoreClient, group: str = "g1") -> None:
    """One group from the queue to the ack, with tokens."""
    store.enqueue(make_group(group, 2))
    for lease in store.lease(limit=2):
        session_id = lease["request"]["episode_id"] + ".a1"
        store.play_session(session_id)
        store.put(make_trajectory(lease["request"], session_id=session_id), lease["lease_id"])
    batch = store.lease_batch()
    assert [episode.complete for episode in batch.groups[0].episodes] == [True, True]
    assert len(episode_ids(batch)) == 2
    store.ack(batch)
    store.assert_balanced()


@pytest.fixture
def secret_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, "--appendonly", "yes", "--requirepass", "p@ss:w/rd") as server:
        yield server


SECRET = ":p%40ss%3Aw%2Frd@"


def test_a_password_in_the_url(secret_redis: RedisServer) -> None:
    with StoreThread(make_config(secret_redis.url.replace("//", f"//{SECRET}"))) as server:
        store = StoreClient(server.url)
        live(store)
        store.close()
    with StoreThread(make_config(secret_redis.url.replace("//", "//:wrong@"))) as server:
        store = StoreClient(server.url)
        status, body = store.status("GET", "/readyz")
        assert status == 503
        assert "wrong" not in str(body), "secrets are not told"
        assert store.status("GET", "/v1/stats")[0] == 503
        store.close()


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of a private authority, and a server that shows it."""
    ca, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(ca)]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca, key)
    return ca, context


def test_tls_with_a_private_authority(secret_redis: RedisServer, tmp_path: Path) -> None:
    ca, context = certificate(tmp_path)
    with Front(secret_redis.port, context) as front:
        url = f"rediss://{SECRET}localhost:{front.port}/0"
        with StoreThread(make_config(f"{url}?ssl_ca_certs={ca}")) as server:
            store = StoreClient(server.url)
            wait_until(lambda: store.status("GET", "/readyz")[0] == 200, what="TLS")
            live(store)
            store.close()
        with StoreThread(make_config(url)) as server:
            store = StoreClient(server.url)
            status, body = store.status("GET", "/readyz")
            assert status == 503
            assert "CERTIFICATE_VERIFY_FAILED" in str(body).upper().replace(" ", "_"), "an unknown authority is refused"
            store.close()


@pytest.mark.slow
def test_sentinel_follows_a_failover(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "sentinel")]
    for folder in folders:
        folder.mkdir()
    first = RedisServer(folders[0], "--appendonly", "yes")
    first.start()
    second = RedisServer(folders[1], "--appendonly", "yes", "--replicaof", "127.0.0.1", str(first.port))
    second.start()
    port = free_port()
    config = folders[2] / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {first.port} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n"
    )
    sentinel = subprocess.Popen([redis_executable(), str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=folders[2])
    try:
        with redis.Redis(port=second.port) as replica:
            wait_until(lambda: replica.info("replication").get("master_link_status") == "up", what="replication")
        with redis.Redis(port=port) as watcher:
            wait_until(lambda: _answers(watcher) and watcher.sentinel_slaves("main"), 20, "the sentinel")
        with StoreThread(make_config(f"redis+sentinel://127.0.0.1:{port}/main")) as server:
            store = StoreClient(server.url)
            live(store)
            time.sleep(0.3)  # replication is asynchronous
            first.kill()
            wait_until(lambda: store.status("GET", "/readyz")[0] == 200 and _works(store), 60, "the failover")
            assert store.stats()["trained"] == 2
            live(store, "g2")
            store.close()
    finally:
        sentinel.kill()
        sentinel.wait(10)
        first.kill()
        second.kill()


def _answers(client: "redis.Redis[bytes]") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _works(store: StoreClient) -> bool:
    return store.status("PUT", "/v1/documents/probe", {})[0] == 204


@pytest.mark.slow
def test_a_cluster_keeps_each_trial_on_one_node(tmp_path: Path) -> None:
    nodes: list[RedisServer] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        nodes.append(RedisServer(tmp_path / name, "--appendonly", "yes", "--cluster-enabled", "yes"))
        nodes[-1].start()
    raw = [redis.Redis(port=node.port) for node in nodes]
    raw[0].execute_command("CLUSTER ADDSLOTS", *range(8192))
    raw[1].execute_command("CLUSTER ADDSLOTS", *range(8192, 16384))
    raw[0].execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port)
    wait_until(lambda: all(b"cluster_state:ok" in _cluster_info(client) for client in raw), 20, "the cluster")
    with StoreThread(make_config(f"redis+cluster://127.0.0.1:{nodes[0].port}")) as server:
        store = StoreClient(server.url)
        wait_until(lambda: store.status("GET", "/readyz")[0] == 200, what="the store")
        live(store)
        others = [StoreClient(f"{server.url}/t/lab/{number}") for number in range(4)]
        for other in others:
            live(other)
            other.close()
        assert len(store.call("GET", "/v1/trials")["trials"]) == 5
        store.close()
    for client in raw:
        assert client.dbsize() > 1, "trials spread over the nodes"
        client.close()
    for node in nodes:
        node.kill()


def _cluster_info(client: "redis.Redis[bytes]") -> bytes:
    answer = client.execute_command("CLUSTER INFO")
    return b"cluster_state:ok" if isinstance(answer, dict) and answer.get("cluster_state") == "ok" else bytes(str(answer), "utf-8")


@pytest.mark.parametrize("url", ["http://x", "redis+sentinel://host:1", "redis+sentinel://host:1/main?wrong=1", "redis://host:port"])
async def test_a_url_that_is_none_is_named_without_its_secrets(url: str) -> None:
    with pytest.raises(BadUrl, match="redis_url"):
        connect(url)
    assert without_secrets("rediss://user:pw@host:1/0?password=x") == "host:1/0"
