"""Owns understanding what the agent asks for in plain text: which of the user's tools, who the user is, a choice, permission, a goodbye.

Named tools win over described ones. Refuses to guess beyond its phrase list: anything else is `Unclear`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.user_simulator.calls import written_calls

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunTool:
    """The agent wants a tool run."""

    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class RunTools:
    """The agent wants tools run, in this order."""

    calls: tuple[RunTool, ...]


@dataclass(frozen=True, slots=True)
class Identify:
    """The agent asks who the user is. ``slots`` are keys of `SLOTS`, empty where it does not say what it wants to know."""

    slots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decide:
    """The agent asks what the user wants: a question with more answers than yes and no."""


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


Request = RunTools | Identify | Decide | Confirm | Goodbye | Transferred | Unclear

MESSAGING = {"app_name": "messaging"}
DESCRIBED: tuple[tuple[str, str, Json], ...] = (
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

SLOTS: dict[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    name: (re.compile(asked, re.IGNORECASE), re.compile(told, re.IGNORECASE))
    for name, asked, told in (
        ("user id", r"user ?id|username|customer id", r"user[ _]?id|\b[a-z]+_[a-z]+_\d{3,}\b"),
        (
            "name",
            r"\b(?:your|full|last|first) (?:full |first |last )?names?\b|who am i speaking",
            r"\b(?:named?|called)\b|^i(?: am|'m) (?-i:[A-Z])",
        ),
        ("email", r"e-?mail", r"e-?mail|\S@\S"),
        ("phone", r"phone number|number on (?:file|the account)|telephone", r"phone|\d{3}-\d{3}-\d{4}"),
        ("birth", r"date of birth|birth ?(?:day|date)|\bdob\b", r"birth|\bdob\b"),
        ("zip", r"zip|postal code", r"zip|\b\d{5}\b"),
        ("address", r"\baddress\b(?<!email address)", r"address|\blive in\b"),
        ("reservation", r"reservation (?:id|number|code)|confirmation (?:number|code)|booking", r"reservation|confirmation"),
        ("order", r"order (?:id|number|#)", r"order|#W\d+"),
        ("income", r"income", r"income|earns?"),
        ("subscription", r"rho-?bank ?\+|subscription", r"subscription"),
    )
}
"""What identifies a user -> (how it is asked for, how it is known by)."""

_TRANSFER = re.compile(r"(?:are being|will be|been) transferred to|transferring you", re.IGNORECASE)
_IDENTITY = re.compile(
    r"\b(?:your|the)\b[^.?!]*\b(?:name|phone number|number on|account number|user id|e-?mail|zip|date of birth|identity|details)\b"
    r"|who am i speaking",
    re.IGNORECASE,
)
_ASKS = re.compile(r"\?|\b(?:please|could you|can you|may i|i(?:'ll| will)? need|provide|tell me|share|give me|verify)\b", re.IGNORECASE)
_OPEN_QUESTION = re.compile(r"\b(?:what|which|when|where|who|whose|why|how)\b[^.!?]*\?|\bor\b(?! no\b| not\b)[^.!?]*\?", re.IGNORECASE)
_PERMISSION = re.compile(
    r"\b(?:shall|may|can|could|should) (?:i|we)\b|would you like|do you (?:want|agree|confirm|accept)|please confirm|go ahead|proceed"
    r"|\(yes/no\)|yes or no|is (?:that|this) (?:correct|right|ok|okay|fine)",
    re.IGNORECASE,
)
_FAREWELL = re.compile(r"goodbye|good-bye|have a (?:great|good|nice|wonderful)", re.IGNORECASE)
_FINISHED = re.compile(r"(?:is|has been|are|should be) (?:now )?(?:resolved|fixed)|anything else", re.IGNORECASE)


def understand(text: str, tools: Mapping[str, Json]) -> Request:
    """What the agent's text asks for. ``tools``: name -> JSON schema of the parameters."""
    calls = written_calls(text, tools)
    if calls:
        return RunTools(tuple(RunTool(name, arguments) for name, arguments in calls))
    if _transferred(text):
        return Transferred()
    # Before what is described: a closing summary tells what was switched and reset on the phone.
    if _FAREWELL.search(text):
        return Goodbye()
    if request := _described(text, tools):
        return RunTools((request,))
    return Goodbye() if _FINISHED.search(text) else _question(text)


def _transferred(text: str) -> bool:
    return any(_TRANSFER.search(part) for part in re.findall(r"[^.!?\n]+[.!?]?", text) if not part.endswith("?"))


def _question(text: str) -> Request:
    slots = tuple(name for name, (asked, _) in SLOTS.items() if asked.search(text)) if _ASKS.search(text) else ()
    permission = bool(_PERMISSION.search(text))
    if (slots and not permission) or (_IDENTITY.search(text) and _ASKS.search(text)):
        return Identify(slots)
    if _OPEN_QUESTION.search(text.replace("(yes/no)", "").replace("yes or no", "")):
        return Decide()
    return Confirm() if permission else Unclear()


def _described(text: str, tools: Mapping[str, Json]) -> RunTool | None:
    lowered = text.lower()
    for phrase, name, arguments in DESCRIBED:
        if name in tools and re.search(phrase, lowered):
            return RunTool(name, dict(arguments))
    return None
