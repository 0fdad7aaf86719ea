"""Owns telecom on the code of the `inspect-evals` port: its two toolkits, and sessions of the carrier's database and the phone.

Both databases are small lists of records that tools search and write to in place, so a session copies them whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from services.agent_runner.domains.base import Requestor
from services.agent_runner.domains.cow import canonical, merged
from services.agent_runner.domains.port import Toolkit, ToolkitSource, port_module
from services.agent_runner.domains.sessions import Json, PortSession


class _NoExtra(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _strict(module: Any) -> Mapping[str, Any]:
    """Upstream's phone settings refuse unknown fields, the port's ignore them; tool and schema both show it."""
    settings: type[BaseModel] = module.APNSettings
    return {
        "APNSettings": create_model("APNSettings", __base__=(settings, _NoExtra), __doc__=settings.__doc__, __module__=settings.__module__)
    }


AGENT = ToolkitSource(
    hosted="telecom.TelecomAgentTools:TelecomAgentTools",
    name="TelecomTools",
    wrappers="telecom.tools",
    tools=(
        "get_customer_by_phone",
        "get_customer_by_id",
        "get_customer_by_name",
        "get_details_by_id",
        "suspend_line",
        "resume_line",
        "get_bills_for_customer",
        "send_payment_request",
        "get_data_usage",
        "enable_roaming",
        "disable_roaming",
        "transfer_to_human_agents",
        "refuel_data",
    ),
    writes=frozenset({"suspend_line", "resume_line", "send_payment_request", "enable_roaming", "disable_roaming", "refuel_data"}),
    # The other methods have upstream's docstring; this one is reflowed in the port, and its wrapper has kept upstream's.
    described=frozenset({"get_data_usage"}).__contains__,
    # Upstream returns the model here, the port its dump; numbers inside models stay numbers in upstream's text.
    renderers={"get_details_by_id": lambda value: json.dumps(value, default=str)},
)

USER = ToolkitSource(
    hosted="telecom.TelecomUserTools:TelecomUserTools",
    name="TelecomUserTools",
    wrappers="telecom.user_tools",
    tools=(
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
        "check_data_restriction_status",
        "toggle_data_saver_mode",
        "check_apn_settings",
        "set_apn_settings",
        "reset_apn_settings",
        "check_wifi_status",
        "toggle_wifi",
        "check_wifi_calling_status",
        "toggle_wifi_calling",
        "check_vpn_status",
        "connect_vpn",
        "disconnect_vpn",
        "check_installed_apps",
        "check_app_status",
        "check_app_permissions",
        "grant_app_permission",
        "can_send_mms",
        "reboot_device",
        "check_payment_request",
        "make_payment",
    ),
    writes=frozenset(
        {
            "set_network_mode_preference",
            "toggle_airplane_mode",
            "reseat_sim_card",
            "toggle_data",
            "toggle_roaming",
            "toggle_data_saver_mode",
            "set_apn_settings",
            "reset_apn_settings",
            "toggle_wifi",
            "toggle_wifi_calling",
            "connect_vpn",
            "disconnect_vpn",
            "grant_app_permission",
            "reboot_device",
            "make_payment",
        }
    ),
    described=frozenset[str]().__contains__,
    replaced=_strict,
)


class TelecomCode:
    """The port's telecom classes, loaded once per process."""

    def __init__(self) -> None:
        self.kits: dict[Requestor, Toolkit] = {"assistant": AGENT.load(), "user": USER.load()}
        user = port_module("telecom.TelecomUserTools")
        self.vpn_details: BaseModel = user.TelecomUserTools.model_fields["default_vpn_details"].default
        self.agent_db: type[Any] = port_module("telecom.TelecomAgentTools").TelecomDB
        self.user_db: type[Any] = user.TelecomUserDB
        self.environment: Any = port_module("telecom.environment").Environment


@dataclass(frozen=True, slots=True)
class TelecomBase:
    """The two databases as they are read, dumped from validated models: validating plain values again is the cheapest way to copy them."""

    agent: Json
    user: Json


class TelecomSession(PortSession):
    """One episode's telecom world: the carrier's database, the phone, and what keeps the two in step."""

    def __init__(self, code: TelecomCode, base: TelecomBase, *, solo: bool) -> None:
        self._agent: Any = code.kits["assistant"].code()
        self._agent.db = code.agent_db.model_validate(base.agent)
        self._user: Any = code.kits["user"].code()
        self._user.db = code.user_db.model_validate(base.user)
        # A tool breaks the VPN by writing into this object, so each session needs one of its own.
        self._user.default_vpn_details = code.vpn_details.model_copy(deep=True)
        super().__init__(code.kits, {"assistant": self._agent, "user": self._user}, solo=solo)
        self._environment = code.environment(self._user, self._agent)

    def sync(self) -> None:
        """Carries over between carrier and phone what the other side has to see."""
        self._environment.sync_tools()

    def merge(self, side: Requestor, data: Json) -> None:
        """Merges initialization data into the database of its side. Raises ValueError (pydantic's)."""
        host = self._hosts[side]
        host.db = type(host.db).model_validate(merged(host.db.model_dump(), data))

    def fingerprint(self) -> tuple[str, str]:
        """sha256 of the agent's and of the user's database."""
        agent, user = (hashlib.sha256(canonical(host.db).encode()).hexdigest() for host in (self._agent, self._user))
        return agent, user

    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hashes of both databases."""
        return self.fingerprint()
