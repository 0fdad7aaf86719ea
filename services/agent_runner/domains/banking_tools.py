"""Owns the banking toolkits: the port's tool methods on plain classes, with those corrected that the port has from an older tau2.

The port took its code before tau2 1.0.1, which changed which calls leave a record and how numbers in JSON arguments are read. Both decide
about end states, and texts are read by agents, so tau2 1.0.1 is followed here. Refuses to change anything else of the port's.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from functools import lru_cache
from types import FunctionType
from typing import Any, TypeVar

from services.agent_runner.domains.banking_db import forgetting
from services.agent_runner.domains.base import Requestor
from services.agent_runner.domains.port import Toolkit, plain_class, port_module
from services.agent_runner.domains.schemas import Schema, function_schema

UPSTREAM = "tau2.domains.banking_knowledge.tools"
READ_ONLY = ("get_", "initial_transfer_", "emergency_")
"""How the names of those discoverable agent tools begin that write nothing."""
AGENT_TOOLS = (
    "transfer_to_human_agents",
    "get_current_time",
    "get_user_information_by_id",
    "get_user_information_by_name",
    "get_user_information_by_email",
    "change_user_email",
    "get_referrals_by_user",
    "get_credit_card_transactions_by_user",
    "get_credit_card_accounts_by_user",
    "log_verification",
    "give_discoverable_user_tool",
    "unlock_discoverable_agent_tool",
    "call_discoverable_agent_tool",
    "list_discoverable_agent_tools",
)
"""The agent's tools that need no unlocking, in upstream's order."""
USER_TOOLS = (
    "apply_for_credit_card",
    "submit_referral",
    "call_discoverable_user_tool",
    "list_discoverable_user_tools",
    "request_human_agent_transfer",
    "submit_transaction",
)
"""The user's tools that are not for the agent to give, in upstream's order."""
AGENT_WRITES = frozenset(
    {
        "change_user_email",
        "log_verification",
        "give_discoverable_user_tool",
        "unlock_discoverable_agent_tool",
        "call_discoverable_agent_tool",
    }
)
USER_WRITES = frozenset(USER_TOOLS) - {"list_discoverable_user_tools"}
USER_LOOK_UP = "get_card_last_4_digits"
"""The one tool for the agent to give that tau2 counts as a look-up, although it puts its call on record."""
DOCSTRINGS = {
    "open_bank_account_4821": (
        "Must be one of: 'checking', 'savings',",
        "Type of account to open. Must be one of: 'checking' (personal checking), 'savings' (personal savings),",
    ),
    "get_bank_account_transactions_9173": (
        "for a bank account.\n",
        "for a bank account.\n\n        Transactions are returned in reverse chronological order (most recent\n        first).\n",
    ),
}
"""What unlocking a tool tells the agent: the port's words and tau2's."""
PARAMETERS: dict[str, dict[str, str]] = {
    "transfer_to_human_agents": {"reason": "The specific reason code for the transfer."},
    "give_discoverable_user_tool": {
        "discoverable_tool_name": 'The name of the discoverable tool (e.g., "open_webpage", "navigate_to_section")',
        "arguments": 'JSON string of arguments for the tool (e.g., \'{"url": "https://example.com"}\')',
    },
    "unlock_discoverable_agent_tool": {
        "agent_tool_name": 'The name of the agent discoverable tool to unlock\n(e.g., "calculate_apr_adjustment_7842")',
    },
    "call_discoverable_agent_tool": {"arguments": 'JSON string of arguments for the tool (e.g., \'{"user_id": "abc123"}\')'},
    "call_discoverable_user_tool": {
        "discoverable_tool_name": 'The name of the discoverable tool to call (e.g., "open_webpage")',
        "arguments": 'JSON string of arguments for the tool (e.g., \'{"url": "https://example.com"}\')',
    },
}
"""What tau2 says about a parameter where the port says something else."""

F = TypeVar("F", bound=Callable[..., Any])


def upstreams(function: F) -> F:
    """Names tau2's module as the function's: Python puts it into the text of some TypeErrors, which agents read."""
    function.__module__ = UPSTREAM
    return function


# The names of the two classes show in the text of a TypeError as well. Methods without a docstring have the port's, which agents read
# when they unlock a tool. `super()` is the port: see `BankingCode`.


class KnowledgeTools:
    """The agent's tools that changed since the port was made. ``logged_reads``: look-ups that the reference solution makes."""

    def __init__(self, db: Any, logged_reads: Iterable[str] = ()) -> None:
        self.db = db
        self.agent_unlocked_tools: dict[str, Any] = {}
        self.user_given_tools_state: dict[str, Any] = {}
        self._logged_reads = frozenset(logged_reads)

    @upstreams
    def give_discoverable_user_tool(self, discoverable_tool_name: str, arguments: str = "{}") -> str:
        ported: Any = super()
        hasattr(self, discoverable_tool_name)  # raises for a name that is no string; the port calls that an unknown tool
        return ported.give_discoverable_user_tool(discoverable_tool_name, arguments)

    @upstreams
    def call_discoverable_agent_tool(self, agent_tool_name: str, arguments: str = "{}") -> str:
        ported: Any = super()
        # A look-up that the reference solution does without must not show in the end state.
        unlogged = str(agent_tool_name).startswith(READ_ONLY) and agent_tool_name not in self._logged_reads
        with forgetting(self.db.agent_discoverable_tools.data) if unlogged else nullcontext():
            return ported.call_discoverable_agent_tool(agent_tool_name, _with_floats(arguments))

    @upstreams
    def file_debit_card_transaction_dispute_6281(self, *args: Any, **kwargs: Any) -> str:
        ported: Any = super()
        result = ported.file_debit_card_transaction_dispute_6281(*args, **kwargs)
        choices = ["keep_active", "freeze_pending_investigation", "close_and_reissue"]
        return f"Error: Invalid card_action. Must be one of: {choices}" if result == "Error: Invalid card_action." else result

    @upstreams
    def approve_credit_limit_increase_5847(self, credit_card_account_id: str, user_id: str, new_credit_limit: int) -> str:
        ported: Any = super()
        result = ported.approve_credit_limit_increase_5847(credit_card_account_id, user_id, new_credit_limit)
        full = f"Error: Credit card account '{credit_card_account_id}' does not belong"
        return result.replace("Error: Account does not belong", full, 1)

    @upstreams
    def submit_credit_limit_increase_request_7392(self, credit_card_account_id: str, user_id: str, requested_increase_amount: float) -> str:
        ported: Any = super()
        amount: Any = requested_increase_amount
        if credit_card_account_id and user_id and amount is not None:
            number = _number(amount)
            if number is None:
                return "Error: Invalid requested_increase_amount. Must be a whole number."
            if not number.is_integer():
                return "Error: Invalid requested_increase_amount. Must be a whole number of dollars."
            amount = int(number)
        return ported.submit_credit_limit_increase_request_7392(credit_card_account_id, user_id, amount)

    @upstreams
    def request_temporary_debit_card_limit_increase_8374(self, card_id: str, limit_type: str, new_limit: float) -> str:
        ported: Any = super()
        number = _number(new_limit)
        if number is not None:
            # The port truncates a fraction; as text it is refused, with the number in tau2's spelling.
            new_limit = int(number) if number.is_integer() else str(number)  # pyright: ignore[reportAssignmentType]
        return ported.request_temporary_debit_card_limit_increase_8374(card_id, limit_type, new_limit)

    @upstreams
    def apply_checking_account_credit_5829(self, account_id: str, amount: float, credit_type: str) -> str:
        ported: Any = super()
        return _credited(ported.apply_checking_account_credit_5829, account_id, amount, credit_type)

    @upstreams
    def apply_savings_account_credit_6831(self, account_id: str, amount: float, credit_type: str) -> str:
        ported: Any = super()
        return _credited(ported.apply_savings_account_credit_6831, account_id, amount, credit_type)

    @upstreams
    def get_bank_account_transactions_9173(self, account_id: str) -> str:
        if not account_id:
            return "Error: Missing required parameter: account_id"
        if account_id not in self.db.accounts.data:
            return f"Error: Account '{account_id}' not found."
        found = [item for item in self.db.bank_account_transaction_history.data.items() if item[1].get("account_id") == account_id]
        found.sort(key=lambda item: _when(str(item[1].get("date", ""))), reverse=True)
        head = "Bank account transactions retrieved successfully.\n\nExecuted: get_bank_account_transactions_9173\n"
        return f"{head}Transactions for account {account_id}:\n{_listing(found)}"


class KnowledgeUserTools:
    """The user's tools that changed since the port was made."""

    VALID_CREDIT_CARD_TYPES: list[str]

    def __init__(self, db: Any) -> None:
        self.db = db

    @upstreams
    def apply_for_credit_card(self, card_type: str, customer_name: str, annual_income: float, rho_bank_subscription: bool = False) -> str:
        ported: Any = super()
        if card_type in self.VALID_CREDIT_CARD_TYPES:
            number = _number(annual_income)
            if number is None:
                return "Error: Invalid annual_income. Must be a number."
            annual_income = number
        return ported.apply_for_credit_card(card_type, customer_name, annual_income, rho_bank_subscription)

    @upstreams
    def call_discoverable_user_tool(self, discoverable_tool_name: str, arguments: str = "{}") -> str:
        ported: Any = super()
        return ported.call_discoverable_user_tool(discoverable_tool_name, _with_floats(arguments))


class BankingCode:
    """Both toolkits, loaded once per process (seconds, for the port's imports)."""

    def __init__(self) -> None:
        agent, user = port_module("banking.BankingAgentTools"), port_module("banking.BankingUserTools")
        cards = {"VALID_CREDIT_CARD_TYPES": user.VALID_CREDIT_CARD_TYPES}
        agent_class = _assembled(KnowledgeTools, agent.BankingAgentTools, {})
        user_class = _assembled(KnowledgeUserTools, user.BankingUserTools, cards)
        self.hidden: dict[Requestor, frozenset[str]] = {
            "assistant": frozenset(agent.AGENT_DISCOVERABLE_TOOLS),
            "user": frozenset(user.USER_DISCOVERABLE_TOOLS),
        }
        """Tools that can be called by name but are told to nobody: the knowledge base names them, the agent unlocks or gives them."""
        texts = port_module("banking.tools"), port_module("banking.user_tools")
        agent_docs = {name: getattr(texts[0], f"banking_{name}")().__doc__ for name in AGENT_TOOLS}
        # The user's methods have tau2's docstrings, but for the one whose wrapper has kept more of it.
        user_docs = {name: getattr(user.BankingUserTools, name).__doc__ for name in USER_TOOLS}
        user_docs |= {"call_discoverable_user_tool": texts[1].banking_call_discoverable_user_tool().__doc__}
        writes = {tool for tool in self.hidden["assistant"] if not tool.startswith(READ_ONLY)}
        self.kits: dict[Requestor, Toolkit] = {
            "assistant": _toolkit(agent_class, agent_docs, AGENT_WRITES | writes),
            "user": _toolkit(user_class, user_docs, USER_WRITES | self.hidden["user"] - {USER_LOOK_UP}),
        }


def _toolkit(code: type, docstrings: Mapping[str, str], writes: frozenset[str]) -> Toolkit:
    return Toolkit(code, {name: _schema(code, name, docstring) for name, docstring in docstrings.items()}, writes, {})


def _assembled(corrections: type, hosted: type, constants: dict[str, Any]) -> type:
    ported = plain_class(hosted, corrections.__name__, supplied={}, replaced={})
    for name, function in vars(ported).items():
        if isinstance(function, FunctionType):
            function.__module__ = UPSTREAM
        if name in DOCSTRINGS:
            function.__doc__ = str(function.__doc__).replace(*DOCSTRINGS[name])
    return type(corrections.__name__, (corrections, ported), constants)


def _schema(toolkit: type, name: str, docstring: str) -> Schema:
    schema = function_schema(name, getattr(toolkit, name), docstring)
    for parameter, text in PARAMETERS.get(name, {}).items():
        schema["function"]["parameters"]["properties"][parameter]["description"] = text
    return schema


def _with_floats(arguments: str) -> str:
    # JSON knows one kind of number. Ids and hashes must not depend on whether a policy wrote 33 or 33.0.
    try:
        return json.dumps(json.loads(arguments, parse_int=float))
    except (TypeError, ValueError):
        return arguments


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _credited(apply: Callable[..., str], account_id: str, amount: Any, credit_type: str) -> str:
    if account_id and credit_type and amount is not None:
        amount = _number(amount)
        if amount is None:
            return "Error: Invalid credit amount. Must be a number."
    return apply(account_id, amount, credit_type)


@lru_cache(maxsize=4096)
def _when(date: str) -> datetime:
    for form in ("%m/%d/%Y %H:%M:%S", "%m/%d/%Y"):
        try:
            return datetime.strptime(date, form)
        except ValueError:
            continue
    return datetime.min


def _listing(found: list[tuple[str, dict[str, Any]]]) -> str:
    if not found:
        return "\nNo transactions found for this account."
    lines = [f"Found {len(found)} record(s) in 'bank_account_transaction_history':\n"]
    for number, (record_id, record) in enumerate(found, 1):
        lines.append(f"{number}. Record ID: {record_id}")
        lines.extend(f"   {field}: {value}" for field, value in record.items())
        lines.append("")
    return "\n".join(lines)
