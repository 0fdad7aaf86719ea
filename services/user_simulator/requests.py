"""Owns understanding what the agent asks for in plain text: which of the user's tools, who the user is, a confirmation, a goodbye.

Named tools win over described ones. Refuses to guess beyond its phrase list: anything else is `Unclear`.
"""

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunTool:
    """The agent wants a tool run."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Introduce:
    """The agent asks who the user is."""


@dataclass(frozen=True, slots=True)
class Confirm:
    """The agent asks for permission."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The agent has nothing more to do."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """The agent has handed the call over."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """None of the above."""


Request = RunTool | Introduce | Confirm | Goodbye | Transferred | Unclear

MESSAGING = {"app_name": "messaging"}
DESCRIBED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (r"status bar", "check_status_bar", {}),
    (r"speed test", "run_speed_test", {}),
    (
        r"network mode( preference)?.*\b(change|set|switch)|\b(change|set|switch)\b.*network mode",
        "set_network_mode_preference",
        {"mode": "4g_5g_preferred"},
    ),
    (r"network mode|preferred network", "check_network_mode_preference", {}),
    (r"\b(turn|switch|toggle|disable|enable)\b.*airplane mode", "toggle_airplane_mode", {}),
    (r"\b(reseat|re-seat|remove and (re)?insert)\b.*sim", "reseat_sim_card", {}),
    (r"sim( card)?.*\b(status|locked|working)|\bcheck\b.*\bsim\b", "check_sim_status", {}),
    (r"\b(turn|switch|toggle|disable)\b.*data saver", "toggle_data_saver_mode", {}),
    (r"data saver|data restriction", "check_data_restriction_status", {}),
    (r"\b(turn|switch|toggle|enable)\b.*roaming", "toggle_roaming", {}),
    (r"\b(turn|switch|toggle|enable)\b.*mobile data", "toggle_data", {}),
    (r"\breset\b.*\bapn\b", "reset_apn_settings", {}),
    (r"\bapn\b", "check_apn_settings", {}),
    (r"\b(turn|switch|toggle|disable)\b.*wi-?fi calling", "toggle_wifi_calling", {}),
    (r"wi-?fi calling", "check_wifi_calling_status", {}),
    (r"\b(turn|switch|toggle)\b.*wi-?fi", "toggle_wifi", {}),
    (r"wi-?fi", "check_wifi_status", {}),
    (r"\b(turn off|disconnect|disable)\b.*\bvpn\b", "disconnect_vpn", {}),
    (r"\bvpn\b", "check_vpn_status", {}),
    (r"\b(grant|allow|give)\b.*\bstorage\b", "grant_app_permission", MESSAGING | {"permission": "storage"}),
    (r"\b(grant|allow|give)\b.*\bsms\b", "grant_app_permission", MESSAGING | {"permission": "sms"}),
    (r"permission", "check_app_permissions", MESSAGING),
    (r"installed apps|which apps", "check_installed_apps", {}),
    (r"\b(try|send|sending)\b.*\b(mms|picture message)", "can_send_mms", {}),
    (r"\b(restart|reboot)\b", "reboot_device", {}),
    (r"payment request", "check_payment_request", {}),
    (r"\b(make|complete)\b.*payment|\bpay\b.*\bbill", "make_payment", {}),
    (r"network status|airplane mode|signal|connection status|mobile data|roaming", "check_network_status", {}),
)
"""(phrase, tool, arguments), the more specific first."""

_TRANSFER = re.compile(r"transferred to a human|transferring you", re.IGNORECASE)
_IDENTITY = re.compile(r"\b(your|the)\b[^.?!]*\b(name|phone number|number on|account)\b|who am i speaking", re.IGNORECASE)
_PERMISSION = re.compile(
    r"\b(shall|may|can|could|should) (i|we)\b|would you like|do you (want|agree|confirm)|please confirm|go ahead", re.IGNORECASE
)
_GOODBYE = re.compile(
    r"goodbye|good-bye|have a (great|good|nice)|(is|has been|are|should be) (now )?(resolved|fixed)|anything else", re.IGNORECASE
)


def understand(text: str, tools: Collection[str]) -> Request:
    """What the agent's text asks for."""
    if _TRANSFER.search(text):
        return Transferred()
    request = _named(text, tools) or _described(text, tools)
    if request is not None:
        return request
    if _GOODBYE.search(text):
        return Goodbye()
    if _IDENTITY.search(text):
        return Introduce()
    return Confirm() if _PERMISSION.search(text) else Unclear()


def _named(text: str, tools: Collection[str]) -> RunTool | None:
    """The first tool that the text names, such as ``toggle_data()`` or ``grant_app_permission(app_name='messaging', permission='sms')``."""
    for match in re.finditer(r"\b([a-z][a-z0-9_]*)\b(?:\s*\(([^()]*)\))?", text):
        if match[1] in tools:
            return RunTool(match[1], _arguments(match[2] or ""))
    return None


def _arguments(text: str) -> dict[str, Any]:
    """Literal keyword arguments; what is not literal is left out."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        return {}
    arguments: dict[str, Any] = {}
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        try:
            arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return arguments


def _described(text: str, tools: Collection[str]) -> RunTool | None:
    lowered = text.lower()
    for phrase, name, arguments in DESCRIBED:
        if name in tools and re.search(phrase, lowered):
            return RunTool(name, dict(arguments))
    return None
