"""The banking_knowledge back end: its tasks, texts, schemas and search tools, and what its sessions do as tau2 1.0.1 does it."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agent_runner.domains import Action, DomainBackend, TaskSpec, UnknownSplit, UnknownTask
from services.agent_runner.domains.banking import open_banking
from services.agent_runner.domains.banking_retrieval import VARIANTS, Bm25, UnknownVariant
from services.agent_runner.domains.port import port_module

AGENT_SCHEMAS = "bf2e470137a2f914"
USER_SCHEMAS = "945426b16bb95feb"


@pytest.fixture(scope="module", autouse=True)
def _port_data() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TAU2_DATA_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def opened() -> Callable[[str], DomainBackend]:
    known: dict[str, DomainBackend] = {}
    return lambda variant: known.setdefault(variant, open_banking("banking_knowledge", variant))


@pytest.fixture(scope="module")
def banking(opened: Callable[[str], DomainBackend]) -> DomainBackend:
    return opened("no_knowledge")


@pytest.fixture(scope="module")
def first(banking: DomainBackend) -> TaskSpec:
    return banking.tasks("base")[0]


def names(schemas: list[dict[str, Any]]) -> list[str]:
    return [schema["function"]["name"] for schema in schemas]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# -- tasks, tools and texts ------------------------------------------------------------------------------------------------------------


def test_the_tasks_stand_in_file_order_and_in_one_split(banking: DomainBackend):
    tasks = banking.tasks("base")
    assert (list(banking.splits()), len(tasks), tasks[0].task_id, tasks[-1].task_id) == (["base"], 97, "task_001", "task_102")
    assert banking.task("base", "task_050") is next(task for task in tasks if task.task_id == "task_050")
    with pytest.raises(UnknownSplit, match=r"no split 'train'; it has base"):
        banking.tasks("train")
    with pytest.raises(UnknownTask, match=r"no task 'task_1'; did you mean task_"):
        banking.task("base", "task_1")


def test_schemas_are_upstreams(opened: Callable[[str], DomainBackend], first: TaskSpec):
    agent = opened("bm25_grep").tool_schemas(first, solo=False)
    assert names(agent)[:4] == ["KB_search", "grep", "transfer_to_human_agents", "get_current_time"]
    everything = opened("bm25_grep").user_tool_schemas(TaskSpec("banking_knowledge", {"id": "x"}))
    # Taken from tau2 1.0.1's own tools.
    assert (len(agent), digest(agent)) == (16, AGENT_SCHEMAS)
    assert (len(everything), digest(everything)) == (6, USER_SCHEMAS)


def test_the_variant_decides_which_search_tools_stand_in_front(opened: Callable[[str], DomainBackend], first: TaskSpec):
    in_front = {name: names(opened(name).tool_schemas(first, solo=False))[:-14] for name in VARIANTS}
    assert in_front == {
        "no_knowledge": [],
        "full_kb": [],
        "golden_retrieval": [],
        "grep_only": ["grep"],
        "bm25": ["KB_search"],
        "bm25_grep": ["KB_search", "grep"],
    }
    assert {name for name in VARIANTS if opened(name).inline} == {"no_knowledge", "full_kb", "golden_retrieval"}
    with pytest.raises(UnknownVariant, match=r"'alltools' is not available; choose one of no_knowledge"):
        open_banking("banking_knowledge", "alltools")


def test_the_user_holds_what_the_task_gives_and_nothing_where_it_names_an_unknown_tool(banking: DomainBackend):
    def tools(*chosen: str) -> tuple[list[str], bool]:
        task = TaskSpec("banking_knowledge", {"id": "x", "user_tools": list(chosen)})
        return names(banking.user_tool_schemas(task)), "tool call" in banking.user_guidelines(task)

    assert tools("submit_transaction", "apply_for_credit_card") == (["apply_for_credit_card", "submit_transaction"], True)
    assert tools() == ([], False)
    assert tools("submit_transaction", "open_webpage") == ([], False)


def test_policies_quote_what_their_variant_says(opened: Callable[[str], DomainBackend], first: TaskSpec):
    policies = {name: opened(name).policy(first, solo=False) for name in VARIANTS}
    assert not [name for name, policy in policies.items() if "{{" in policy]
    assert len(set(policies.values())) == len(VARIANTS)
    required = first.raw["required_documents"]
    assert policies["golden_retrieval"].count("\n\n---\n\n## ") == len(required) - 1
    assert len(policies["full_kb"]) > 800_000
    nothing = opened("golden_retrieval").policy(TaskSpec("banking_knowledge", {"id": "x"}), solo=False)
    assert "(No documents provided)" in nothing


def test_solo_mode_is_refused_everywhere(banking: DomainBackend, first: TaskSpec):
    for use in (banking.policy, banking.tool_schemas, banking.new_session):
        with pytest.raises(ValueError, match="does not support solo mode; set solo_mode=false"):
            use(first, solo=True)


# -- retrieval -------------------------------------------------------------------------------------------------------------------------


@given(pattern=st.one_of(st.sampled_from(["credit.*card", "fee|charge", "(", "zzzzzz", " ", "[a-z]+", "Rho-Bank"]), st.text(max_size=6)))
@settings(max_examples=25, deadline=None)
def test_grep_finds_what_the_ports_grep_finds(opened: Callable[[str], DomainBackend], first: TaskSpec, pattern: str):
    ports = port_module("banking.tools")._get_knowledge_base()
    assert opened("grep_only").new_session(first, solo=False).call("grep", {"pattern": pattern}).content == ports.grep(pattern)


def test_search_ranks_by_bm25_and_never_tells_a_time(opened: Callable[[str], DomainBackend], first: TaskSpec):
    session = opened("bm25").new_session(first, solo=False)
    found = session.call("KB_search", {"query": "Gold Rewards Card annual fee"}).content
    scores = [float(score) for score in re.findall(r"^   Score: (\d+\.\d{4})$", found, re.MULTILINE)]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True) and scores[0] > 5
    assert found.endswith("\n\n[Timing: retrieval=0ms, total=0ms]")
    assert session.call("KB_search", {"query": " "}).content.startswith("No relevant documents found.")
    assert session.call("KB_search", {"query": 7}).content == "Error: 'int' object has no attribute 'strip'"
    assert "missing 1 required positional argument: 'query'" in session.call("KB_search", {}).content


@given(
    corpus=st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=9), min_size=2, max_size=8),
    query=st.text("abcxyz", max_size=5),
)
@settings(max_examples=60)
def test_bm25_is_the_textbook_formula(corpus: list[list[str]], query: str):
    size, mean = len(corpus), sum(map(len, corpus)) / len(corpus)
    idf = {word: math.log((size - n + 0.5) / (n + 0.5)) for word in {w for d in corpus for w in d} if (n := sum(word in d for d in corpus))}
    floor = 0.25 * sum(idf.values()) / len(idf)

    def term(word: str, words: list[str]) -> float:
        weight = floor if idf.get(word, 0.0) < 0 else idf.get(word, 0.0)
        return weight * words.count(word) * 2.5 / (words.count(word) + 1.5 * (0.25 + 0.75 * len(words) / mean))

    scores = Bm25(corpus).scores(query)
    for index, words in enumerate(corpus):
        assert scores.get(index, 0.0) == pytest.approx(sum(term(word, words) for word in query), abs=1e-9)


# -- sessions --------------------------------------------------------------------------------------------------------------------------


class Bank:
    """A session with shorter words for what the tests do with it."""

    def __init__(self, backend: DomainBackend, raw: dict[str, Any] | None = None) -> None:
        self.session: Any = backend.new_session(TaskSpec("banking_knowledge", {"id": "made_up"} | (raw or {})), solo=False)

    def agent(self, tool: str, **arguments: Any) -> str:
        return self.session.call(tool, arguments).content

    def user(self, tool: str, **arguments: Any) -> str:
        return self.session.call(tool, arguments, "user").content

    def unlocked(self, tool: str, arguments: Any) -> str:
        self.agent("unlock_discoverable_agent_tool", agent_tool_name=tool)
        return self.agent("call_discoverable_agent_tool", agent_tool_name=tool, arguments=json.dumps(arguments))

    def given(self, tool: str, arguments: Any) -> str:
        self.agent("give_discoverable_user_tool", discoverable_tool_name=tool)
        return self.user("call_discoverable_user_tool", discoverable_tool_name=tool, arguments=json.dumps(arguments))

    def hash(self) -> str:
        return self.session.db_hashes()[0]


ACCOUNT = {
    "account_id": "chk_1",
    "user_id": "u_1",
    "class": "checking",
    "level": "Blue Account",
    "status": "OPEN",
    "current_holdings": "100.00",
}
CARD = {"account_id": "cc_1", "user_id": "u_1", "credit_limit": "$5000.00", "status": "ACTIVE"}
SMALL = {
    "initial_state": {
        "initialization_data": {
            "agent_data": {
                "accounts": {"data": {"chk_1": ACCOUNT, "sav_1": ACCOUNT | {"account_id": "sav_1", "class": "savings"}}},
                "credit_card_accounts": {"data": {"cc_1": CARD}},
            }
        }
    }
}


@pytest.fixture
def bank(banking: DomainBackend) -> Callable[..., Bank]:
    return lambda **raw: Bank(banking, SMALL | raw)


def test_agent_and_user_share_one_database_and_sessions_share_nothing(banking: DomainBackend, bank: Callable[..., Bank]):
    task = next(task for task in banking.tasks("base") if task.initialization_data.get("agent_data"))
    before, mine, other = json.dumps(task.raw), bank(), bank()
    untouched = mine.hash()
    mine.given("deposit_check_3847", {"account_id": "chk_1", "check_amount": 50})
    assert "current_holdings: $150.00" in mine.unlocked("get_all_user_accounts_by_user_id_3847", {"user_id": "u_1"})
    assert mine.session.fingerprint()[0] == mine.session.fingerprint()[1] == mine.hash() != untouched == other.hash() == bank().hash()
    session: Any = banking.new_session(task, solo=False)
    for name, update in task.initialization_data["agent_data"].items():
        for key in update["data"]:
            getattr(session._database, name).data[key]["spoiled"] = True
    assert json.dumps(task.raw) == before


def test_initialization_data_must_fit_the_database(banking: DomainBackend):
    def begin(agent_data: dict[str, Any]) -> None:
        Bank(banking, {"initial_state": {"initialization_data": {"agent_data": agent_data}}})

    with pytest.raises(ValueError, match="the database has no table 'loans'; it has users, accounts"):
        begin({"loans": {"data": {}}})
    with pytest.raises(ValueError, match="accounts/chk_1 must be an object"):
        begin({"accounts": {"data": {"chk_1": 7}}})


def test_only_look_ups_of_the_reference_solution_are_put_on_record(bank: Callable[..., Bank]):
    reads = ("get_all_user_accounts_by_user_id_3847", {"user_id": "u_1"})
    writes = ("apply_checking_account_credit_5829", {"account_id": "chk_1", "amount": 5, "credit_type": "fee_refund"})
    call = {"name": "call_discoverable_agent_tool", "arguments": {"agent_tool_name": reads[0], "arguments": "{}"}}
    plain, expected = bank(), bank(evaluation_criteria={"actions": [call]})
    start = plain.hash()
    assert (plain.unlocked(*reads) == expected.unlocked(*reads), plain.hash() == start, expected.hash() == start) == (True, True, False)
    assert reads[0] not in plain.agent("list_discoverable_agent_tools") and reads[0] in expected.agent("list_discoverable_agent_tools")
    assert "Error" not in plain.unlocked(*writes) and writes[0] in plain.agent("list_discoverable_agent_tools")


def test_a_look_up_that_grading_would_not_repeat_leaves_nothing(bank: Callable[..., Bank]):
    direct, given, replayed = bank(), bank(), bank()
    for one in (direct, given, replayed):
        one.agent("give_discoverable_user_tool", discoverable_tool_name="get_card_last_4_digits")
    start = direct.hash()
    assert "Last 4 digits" in direct.user("get_card_last_4_digits", credit_card_account_id="cc_1")
    assert "Last 4 digits" in given.given("get_card_last_4_digits", {"credit_card_account_id": "cc_1"})
    replayed.session.replay(Action("user", "get_card_last_4_digits", {"credit_card_account_id": "cc_1"}, None))
    assert direct.hash() == start != given.hash() == replayed.hash()


def test_the_spelling_of_a_number_does_not_matter(bank: Callable[..., Bank]):
    def end(number: Any) -> str:
        one = bank()
        assert "Error" not in one.given("deposit_check_3847", {"account_id": "chk_1", "check_amount": number})
        assert "Error" not in one.unlocked(
            "apply_savings_account_credit_6831", {"account_id": "sav_1", "amount": number, "credit_type": "fee_refund"}
        )
        increase = {"credit_card_account_id": "cc_1", "user_id": "u_1", "requested_increase_amount": number}
        assert "Requested Increase: $2,500\n" in one.unlocked("submit_credit_limit_increase_request_7392", increase)
        one.user("apply_for_credit_card", card_type="EcoCard", customer_name="A", annual_income=number)
        return one.hash()

    assert end(2500) == end(2500.0)


def test_numbers_that_are_none_are_told_so(bank: Callable[..., Bank]):
    one = bank()
    ask = {"credit_card_account_id": "cc_1", "user_id": "u_1"}
    for amount, text in (
        ("many", "Must be a whole number."),
        (12.5, "Must be a whole number of dollars."),
        (None, "Missing required parameters."),
    ):
        assert one.unlocked("submit_credit_limit_increase_request_7392", ask | {"requested_increase_amount": amount}).endswith(text)
    credit = {"account_id": "chk_1", "amount": "much", "credit_type": "fee_refund"}
    assert one.unlocked("apply_checking_account_credit_5829", credit) == "Error: Invalid credit amount. Must be a number."
    limit = {"card_id": "dbc_1", "limit_type": "atm", "new_limit": 12.5}
    assert one.unlocked("request_temporary_debit_card_limit_increase_8374", limit) == "Error: new_limit must be an integer, got '12.5'."
    applied = one.user("apply_for_credit_card", card_type="EcoCard", customer_name="A", annual_income="a lot")
    assert applied == "Error: Invalid annual_income. Must be a number."


def test_transactions_come_newest_first_and_those_of_one_day_as_they_stand(bank: Callable[..., Bank]):
    dates = {"t1": "11/01/2025", "t2": "11/03/2025", "t3": "11/03/2025", "t4": "11/02/2025 10:00:00", "t5": "soon"}
    rows = {key: {"account_id": "chk_1", "date": date} for key, date in dates.items()}
    data = SMALL["initial_state"]["initialization_data"]["agent_data"] | {"bank_account_transaction_history": {"data": rows}}
    one = bank(initial_state={"initialization_data": {"agent_data": data}})
    found = one.unlocked("get_bank_account_transactions_9173", {"account_id": "chk_1"})
    assert re.findall(r"Record ID: (t\d)", found) == ["t2", "t3", "t4", "t1", "t5"]
    assert one.unlocked("get_bank_account_transactions_9173", {"account_id": "sav_1"}).endswith("\nNo transactions found for this account.")


def test_errors_read_as_upstreams(bank: Callable[..., Bank]):
    one = bank()
    assert one.agent("get_weather") == "Error: Tool 'get_weather' not found."
    missing = "Error: KnowledgeTools.get_user_information_by_id() missing 1 required positional argument: 'user_id'"
    assert one.agent("get_user_information_by_id") == missing
    assert one.unlocked("get_payment_history_6183", []) == (
        "Error: Invalid arguments: tau2.domains.banking_knowledge.tools.KnowledgeTools.get_payment_history_6183()"
        " argument after ** must be a mapping, not list"
    )
    other = {"credit_card_account_id": "cc_1", "user_id": "u_2", "new_credit_limit": 6000}
    assert one.unlocked("approve_credit_limit_increase_5847", other) == "Error: Credit card account 'cc_1' does not belong to user 'u_2'."
    assert one.agent("give_discoverable_user_tool", discoverable_tool_name=7) == "Error: attribute name must be string, not 'int'"
    unlocking = one.agent("unlock_discoverable_agent_tool", agent_tool_name="get_bank_account_transactions_9173")
    assert "for a bank account.\n\nTransactions are returned in reverse chronological order (most recent\nfirst).\n" in unlocking


def test_task_files_and_upstreams_layout_take_the_place_of_the_packages_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tau2" / "domains" / "banking_knowledge"
    scenario = {"user_scenario": {"instructions": {"domain": "banking_knowledge", "task_instructions": "Ask."}}}
    for name, content in (
        ("tasks/task_002.json", {"id": "task_002"}),
        ("tasks/task_001.json", {"id": "task_001", "required_documents": ["Two", "three"]}),
        ("documents/a.json", {"id": "one", "title": "One", "content": "fees"}),
        ("documents/b.json", {"id": "two", "title": "Two", "content": "fees, fees"}),
        ("db.json", {"users": {"data": {}, "notes": "n"}}),
        ("own.json", {"users": {"data": {"u_9": {"user_id": "u_9", "name": "Nine"}}}}),
        ("mine.json", [{"id": "banking_knowledge_mine", "db_path": "own.json"} | scenario]),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    monkeypatch.setenv("TAU2_DATA_DIR", str(tmp_path))
    backend = open_banking("banking_knowledge", "golden_retrieval")
    tasks = backend.tasks("base")
    assert [task.task_id for task in tasks] == ["task_001", "task_002"] and "TAU2_DATA_DIR" in backend.source
    assert "## Two\n\nfees, fees" in backend.policy(tasks[0], solo=False)
    mine = backend.tasks(str(folder / "mine.json"))[0]
    assert "Nine" in backend.new_session(mine, solo=False).call("get_user_information_by_id", {"user_id": "u_9"}).content
    (folder / "db.json").write_text('{"users": []}')
    with pytest.raises(ValueError, match=r"db\.json: not a database of this domain: banking_knowledge: table 'users' must be an object"):
        open_banking("banking_knowledge").new_session(tasks[0], solo=False)
