"""A litellm model as the user: the real package against the stand-in server, and a clear word where the package is missing."""

import sys
from typing import Any

import pytest
from conftest import Sglang
from user_fakes import GREETING, turn

from services.common.config import ConfigError
from services.common.wire.users import Fault
from services.user_simulator.litellm_backend import LitellmBackend
from services.user_simulator.model import Limits, ModelUser


def test_without_the_package_the_config_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ConfigError, match=r"frontdesk\[litellm\]"):
        LitellmBackend("gpt-4.1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_a_turn_over_litellm_is_labelled_retried_and_bounded(sglang: Sglang, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("litellm", reason="the extra litellm is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    backend = LitellmBackend("openai/qwen", base_url=sglang.base_url)
    arguments: dict[str, Any] = {"temperature": 0.0, "num_retries": 3}
    one = ModelUser(backend, arguments, Limits(turn_s=60, call_s=60))
    before = len(sglang.bodies())
    reply = await one.turn(turn(GREETING))
    assert (reply.fault, reply.content) == (Fault.OK, "My phone is broken, seed 4.")
    assert sglang.bodies()[before]["model"] == "qwen"
    sglang.control("error", times=1)
    assert (await one.turn(turn(GREETING))).fault is Fault.OK
    assert one.tally.retries == 1
    sglang.control("stall")
    bounded = ModelUser(backend, arguments, Limits(turn_s=0.5, call_s=0.3))
    assert (await bounded.turn(turn(GREETING))).fault is Fault.BACKEND_ERROR
    assert await backend.check() == "ok"
    await backend.close()
