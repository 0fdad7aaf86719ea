"""Sessions in memory: bounded, swept, and never without the store's consent."""

import pytest
from fake_store import FakeStore
from proxy_servers import ServerThread

from services.common.http import ServiceClient
from services.policy_proxy.sessions.keys import SessionKeys
from services.policy_proxy.sessions.store import Store
from services.policy_proxy.sessions.table import SessionTable


async def test_memory_is_bounded_and_swept() -> None:
    fake = FakeStore()
    now = 0.0
    with ServerThread(fake.app) as server:
        async with ServiceClient("trajectory_store", server.url) as client:
            table = SessionTable(Store(client), clock=lambda: now, limit=3)
            for number in range(5):
                await table.open(f"s{number}", ttl_s=10)
            assert len(table) == 3
            assert (await table.get("s0")).session_id == "s0"
            assert len(table) == 3
            now = 11.0
            await table.get("s0")
            assert table.sweep() == 2
            assert len(table) == 1


@pytest.mark.parametrize("session_id", ["e1.a1", "x", "a.b.c-d_e:f"])
def test_a_key_names_its_session_on_any_instance(session_id: str) -> None:
    key = SessionKeys(b"secret").issue(session_id)
    assert SessionKeys(b"secret").session_of(key) == session_id
