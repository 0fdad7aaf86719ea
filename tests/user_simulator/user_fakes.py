"""Servers in a thread and in a process of their own, tasks of the benchmark, and turn bodies, for tests of the user simulator."""

import gzip
import importlib.util
import json
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from services.common.wire.users import Scenario, UserSideMessage, UserToolCall, UserTurnBody

Json = dict[str, Any]
TOOL_NAMES = [
    "check_status_bar",
    "check_network_status",
    "check_network_mode_preference",
    "set_network_mode_preference",
    "run_speed_test",
    "toggle_airplane_mode",
    "check_sim_status",
    "reseat_sim_card",
    "toggle_data",
    "toggle_roaming",
    "check_vpn_status",
    "disconnect_vpn",
    "grant_app_permission",
    "check_app_permissions",
    "reboot_device",
    "make_payment",
    "check_payment_request",
    "can_send_mms",
    "reset_apn_settings",
    "check_apn_settings",
]
TOOLS: list[Json] = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in TOOL_NAMES]
FAKE_SGLANG = Path(__file__).parent / "fake_sglang.py"
SCENARIO = Scenario(
    text="Instructions:\n\tDomain: telecom",
    domain="telecom",
    reason_for_call="You cannot use your phone. You want it fixed.",
    known_info="You are John Smith with phone number 555-123-2002.",
)
GREETING = UserSideMessage(role="assistant", content="Hi! How can I help you today?")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@cache
def tasks(domain: str) -> tuple[Json, ...]:
    """The tasks of a domain, as the benchmark's files have them."""
    spec = importlib.util.find_spec("inspect_evals")
    assert spec and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "tau2" / "data" / "domains" / domain
    zipped = folder / "tasks.json.gz"
    return tuple(json.loads(gzip.decompress(zipped.read_bytes()) if zipped.exists() else (folder / "tasks.json").read_bytes()))


class LiveApp:
    """An app behind uvicorn on a free port."""

    def __init__(self, app: FastAPI) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        give_up_at = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < give_up_at, "the app did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)


def agent(text: str) -> UserSideMessage:
    return UserSideMessage(role="assistant", content=text)


def user(text: str) -> UserSideMessage:
    return UserSideMessage(role="user", content=text)


def ran(name: str, result: str, number: int = 0, **arguments: Any) -> list[UserSideMessage]:
    """The user ran a tool and got a result."""
    call = UserToolCall(id=f"user_call_{number}", name=name, arguments=arguments)
    return [UserSideMessage(role="user", tool_calls=[call]), UserSideMessage(role="tool", content=result, tool_call_id=call.id)]


def turn(*messages: UserSideMessage) -> UserTurnBody:
    return UserTurnBody(scenario=SCENARIO, guidelines="# Rules", tools=TOOLS, messages=list(messages), seed=4)
