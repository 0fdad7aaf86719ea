"""The proxy on the real trajectory store and a real Redis: what the trainer would lease is what the server got and said."""

from pathlib import Path

import httpx
import msgspec
import pytest
from proxy_helpers import SYSTEM, SessionClient, call_text, running_proxy, tool, user

from services.common.wire.calls import decode_call, rows_of
from services.policy_proxy.rendering import Renderer


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
