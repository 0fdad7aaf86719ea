"""Owns the scripted demonstrator: a stand-in for a teacher, which plays telecom tickets by looking before it fixes.

It knows the task's reference actions, but reveals each only after a check whose result shows the fault, so that what it does follows from the
ticket and the results seen so far. Refuses to be clever: an ordered list of checks per kind of ticket, then `done`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.agent_runner.domains import STOP_TOOL, Action, Requestor, TaskSpec, ToolResult

Quality = Literal["complete", "gives_up", "skips_step"]
TicketKind = Literal["service", "mobile_data", "mms"]

PHONE, CUSTOMER, LINE = "555-123-2002", "C1001", "L1002"
"""The caller of every telecom ticket."""

TRANSFER = "transfer_to_human_agents"
REBOOT = "reboot_device"
"""Completes the reference action before it, whatever that was."""


class UnknownTicket(ValueError):
    """The demonstrator has no checks for this task."""


@dataclass(frozen=True, slots=True)
class Check:
    """A look, and the reference actions whose faults its result shows."""

    requestor: Requestor
    name: str
    arguments: dict[str, Any]
    reveals: frozenset[str]


def _check(requestor: Requestor, name: str, arguments: dict[str, Any], *reveals: str) -> Check:
    return Check(requestor, name, arguments, frozenset(reveals))


_WHO = _check("assistant", "get_customer_by_phone", {"phone_number": PHONE})
_SUSPENSION = _check("assistant", "get_details_by_id", {"id": LINE}, "send_payment_request", "make_payment", "resume_line", TRANSFER)
_ROAMING = _check("assistant", "get_details_by_id", {"id": LINE}, "enable_roaming")
_USAGE = _check("assistant", "get_data_usage", {"customer_id": CUSTOMER, "line_id": LINE}, "refuel_data")
_NETWORK = _check("user", "check_network_status", {}, "toggle_airplane_mode", "reseat_sim_card", "toggle_data", "toggle_roaming", TRANSFER)
_MODE = _check("user", "check_network_mode_preference", {}, "set_network_mode_preference")
_SAVER = _check("user", "check_data_restriction_status", {}, "toggle_data_saver_mode")
_VPN = _check("user", "check_vpn_status", {}, "disconnect_vpn")
_WIFI_CALLING = _check("user", "check_wifi_calling_status", {}, "toggle_wifi_calling")
_APN = _check("user", "check_apn_settings", {}, "reset_apn_settings")
_PERMISSIONS = _check("user", "check_app_permissions", {"app_name": "messaging"}, "grant_app_permission")

CHECKS: dict[tuple[TicketKind, bool], tuple[Check, ...]] = {
    # The line comes first: where the contract has ended the call is transferred, whatever the phone shows.
    ("service", False): (_WHO, _SUSPENSION, _NETWORK, _APN),
    ("mobile_data", False): (_WHO, _USAGE, _NETWORK, _MODE, _SAVER, _VPN),
    ("mobile_data", True): (_WHO, _ROAMING, _USAGE, _NETWORK, _MODE, _SAVER, _VPN),
    ("mms", False): (_WHO, _USAGE, _NETWORK, _MODE, _WIFI_CALLING, _APN, _PERMISSIONS),
    ("mms", True): (_WHO, _ROAMING, _USAGE, _NETWORK, _MODE, _WIFI_CALLING, _APN, _PERMISSIONS),
}
"""(kind of ticket, customer is abroad) -> checks in order. As few as show every fault that occurs with that ticket."""


@dataclass(frozen=True, slots=True)
class Step:
    """One tool call of a script."""

    requestor: Requestor
    name: str
    arguments: dict[str, Any]
    is_fix: bool


def script(task: TaskSpec, quality: Quality, seed: int) -> list[Step]:
    """The tool calls of one demonstration, without the final ``done``. Raises `UnknownTicket`.

    ``gives_up`` stops at a random point before the last needed fix, ``skips_step`` leaves out one random fix; both by ``seed``.
    """
    steps = _complete(task)
    fixes = [index for index, step in enumerate(steps) if step.is_fix]
    if quality == "complete" or not fixes:
        return steps
    draw = random.Random(f"{task.task_id}/{quality}/{seed}")
    if quality == "gives_up":
        return steps[: draw.randint(1, fixes[-1])]
    skipped = draw.choice(fixes)
    return [step for index, step in enumerate(steps) if index != skipped]


def ticket_kind(task: TaskSpec) -> tuple[TicketKind, bool]:
    """What the ticket is about, and whether the customer is abroad. Raises `UnknownTicket`."""
    ticket = task.ticket or ""
    abroad = "abroad" in ticket
    if "MMS" in ticket:
        return "mms", abroad
    if "mobile data" in ticket:
        return "mobile_data", abroad
    if "phone service" in ticket:
        return "service", False
    raise UnknownTicket(f"task {task.task_id}: the demonstrator plays telecom tickets about service, mobile data and MMS only")


def _complete(task: TaskSpec) -> list[Step]:
    waiting = _by_first_cause(task.actions)
    steps: list[Step] = []
    for check in CHECKS[ticket_kind(task)]:
        steps.append(Step(check.requestor, check.name, check.arguments, is_fix=False))
        revealed = [action for action, cause in waiting if cause in check.reveals]
        waiting = [(action, cause) for action, cause in waiting if cause not in check.reveals]
        steps.extend(_fix(action) for action in revealed)
        if any(action.name == TRANSFER for action in revealed):
            break
    return [*steps, *(_fix(action) for action, _ in waiting)]


def _by_first_cause(actions: Sequence[Action]) -> list[tuple[Action, str]]:
    """Each reference action with the name by which a check reveals it."""
    causes: list[tuple[Action, str]] = []
    for action in actions:
        cause = causes[-1][1] if action.name == REBOOT and causes else action.name
        causes.append((action, cause))
    return causes


def _fix(action: Action) -> Step:
    return Step(action.requestor, action.name, action.arguments, is_fix=True)


class Demonstrator:
    """Plays one script, a message at a time, as a solo agent: exactly one tool call a message and no text."""

    def __init__(self, task: TaskSpec, quality: Quality, seed: int) -> None:
        self._steps = script(task, quality, seed)
        self._said = 0

    def next_message(self, last_tool_result: ToolResult | None) -> dict[str, Any]:
        """The next assistant message in OpenAI form. Past the end it stays with ``done``."""
        step = self._steps[self._said] if self._said < len(self._steps) else None
        name, arguments = (step.name, step.arguments) if step else (STOP_TOOL, {})
        message = tool_call_message(f"call_{self._said}", name, arguments)
        self._said += 1
        return message


def tool_call_message(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """An assistant message with one tool call and no text."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
