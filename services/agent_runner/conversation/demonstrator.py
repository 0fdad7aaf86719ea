"""Owns the scripted demonstrator: a stand-in for a teacher, which plays telecom tickets by looking before it fixes.

It knows the task's reference actions, but plays each only after a check whose result shows the fault: what it does follows from the ticket
and the results seen so far. Refuses to be clever: an ordered list of checks per kind of ticket, then `done`.
"""

import json
import random
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
CONTRACT_END, LOCKED_SIM = "contract end", "locked SIM"
"""The two causes of a transfer."""
TRANSFERRED = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."
"""What the policy has the agent say after a transfer."""


class UnknownTicket(ValueError):
    """The demonstrator has no checks for this task."""


@dataclass(frozen=True, slots=True)
class Check:
    """A look, and the causes for a fix that are known once its result is."""

    requestor: Requestor
    name: str
    arguments: dict[str, Any]
    reveals: frozenset[str]


def _check(requestor: Requestor, name: str, arguments: dict[str, Any], *reveals: str) -> Check:
    return Check(requestor, name, arguments, frozenset(reveals))


_WHO = _check("assistant", "get_customer_by_phone", {"phone_number": PHONE})
_CONTRACT = _check("assistant", "get_details_by_id", {"id": LINE}, CONTRACT_END)
_ROAMING = _check("assistant", "get_details_by_id", {"id": LINE}, "enable_roaming")
_USAGE = _check("assistant", "get_data_usage", {"customer_id": CUSTOMER, "line_id": LINE}, "refuel_data")
_PHONE_STATE = ("toggle_airplane_mode", "reseat_sim_card", "toggle_data", "toggle_roaming")
_NETWORK = _check("user", "check_network_status", {}, *_PHONE_STATE)
_SERVICE = _check("user", "check_network_status", {}, *_PHONE_STATE, LOCKED_SIM, "send_payment_request", "make_payment", "resume_line")
_MODE = _check("user", "check_network_mode_preference", {}, "set_network_mode_preference")
_SAVER = _check("user", "check_data_restriction_status", {}, "toggle_data_saver_mode")
_VPN = _check("user", "check_vpn_status", {}, "disconnect_vpn")
_WIFI_CALLING = _check("user", "check_wifi_calling_status", {}, "toggle_wifi_calling")
_APN = _check("user", "check_apn_settings", {}, "reset_apn_settings")
_PERMISSIONS = _check("user", "check_app_permissions", {"app_name": "messaging"}, "grant_app_permission")

CHECKS: dict[tuple[TicketKind, bool], tuple[Check, ...]] = {
    # The line first: where the contract has ended the call is transferred, whatever else is wrong. A suspended line shows there too, but
    # what to do about it is known only with the state of the SIM: with a locked one the call is transferred as well.
    ("service", False): (_WHO, _CONTRACT, _SERVICE, _APN),
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
    needed: bool = False
    """Whether the task fails without this one call."""


def script(task: TaskSpec, quality: Quality, seed: int) -> list[Step]:
    """The tool calls of one demonstration, without the final ``done``. Raises `UnknownTicket`.

    ``gives_up`` stops at a random point before the last needed fix, ``skips_step`` leaves out one random needed fix; both by ``seed``.
    """
    steps = _complete(task)
    needed = [index for index, step in enumerate(steps) if step.needed]
    if quality == "complete" or not needed:
        return steps
    draw = random.Random(f"{task.task_id}/{quality}/{seed}")
    if quality == "gives_up":
        return steps[: draw.randint(1, needed[-1])]
    skipped = draw.choice(needed)
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
    waiting = _causes(task)
    steps: list[Step] = []
    for check in CHECKS[ticket_kind(task)]:
        steps.append(Step(check.requestor, check.name, check.arguments))
        revealed = [(action, cause) for action, cause in waiting if cause in check.reveals]
        waiting = [(action, cause) for action, cause in waiting if cause not in check.reveals]
        steps.extend(_fix(action, cause) for action, cause in revealed)
        if any(action.name == TRANSFER for action, _ in revealed):
            break
    return [*steps, *(_fix(action, cause) for action, cause in waiting)]


def _causes(task: TaskSpec) -> list[tuple[Action, str]]:
    """Each reference action with what it is done for: mostly the action's own name stands for its one cause."""
    contract_ended = any(call.arguments.get("contract_ended") for call in task.initialization)
    causes: list[tuple[Action, str]] = []
    for action in task.actions:
        cause = action.name
        if action.name == TRANSFER:
            cause = CONTRACT_END if contract_ended else LOCKED_SIM
        elif action.name == REBOOT and causes:
            cause = causes[-1][1]
        causes.append((action, cause))
    return causes


def _fix(action: Action, cause: str) -> Step:
    # New APN settings wait for the reboot; after other fixes the reboot only saves waiting for the network.
    return Step(action.requestor, action.name, action.arguments, needed=action.name != REBOOT or cause == "reset_apn_settings")


class Demonstrator:
    """Plays one script, a message at a time: a tool call or text, never both.

    A solo agent makes every call itself and ends with ``done``. With a user, calls of the user's tools become requests in text (`ask`), and
    the last message says goodbye. Deterministic by (task, quality, seed).
    """

    def __init__(self, task: TaskSpec, quality: Quality, seed: int, *, solo: bool = True) -> None:
        self._steps = script(task, quality, seed)
        self._solo = solo
        self._said = 0

    def next_message(self, last_tool_result: ToolResult | None) -> dict[str, Any]:
        """The next assistant message in OpenAI form; past the end the last one again.

        Takes the last result as any agent does; the script was fixed when the demonstrator was made and does not depend on it.
        """
        number = self._said
        self._said += 1
        if number >= len(self._steps):
            return tool_call_message(f"call_{number}", STOP_TOOL, {}) if self._solo else {"role": "assistant", "content": self._goodbye()}
        step = self._steps[number]
        if step.requestor == "user" and not self._solo:
            return {"role": "assistant", "content": ask(step)}
        return tool_call_message(f"call_{number}", step.name, step.arguments)

    def _goodbye(self) -> str:
        transferred = any(step.name == TRANSFER for step in self._steps)
        return TRANSFERRED if transferred else "That is everything from my side, your issue should be resolved now. Goodbye!"


def ask(step: Step) -> str:
    """A request that the scripted user understands: it names the tool as a call with literal arguments."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in step.arguments.items())
    return f"Please run {step.name}({arguments}) on your phone and tell me what it says."


def tool_call_message(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """An assistant message with one tool call and no text."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
