"""Task files of one's own in tau2's schema, with database snapshots, in the place of a split."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from services.agent_runner.domains import InvalidTaskFile, UnknownSplit, UnknownTask, is_task_file, open_backend
from services.agent_runner.domains.data import package_data


@pytest.fixture(autouse=True)
def _package_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAU2_DATA_DIR", raising=False)


def backend_of(domain: str) -> Any:
    return open_backend(domain, "inspect_evals")


def record(task_id: str = "retail_1", **fields: Any) -> dict[str, Any]:
    """A record as the published RL set has it: no reward basis, evaluation criteria as JSON text."""
    scenario = {
        "instructions": {"task_instructions": "Ask for the mail address.", "domain": task_id.partition("_")[0], "reason_for_call": None}
    }
    action = {"action_id": "1", "name": "find_user_id_by_email", "arguments": {"email": "a@example.com"}}
    criteria = json.dumps({"actions": [action], "communicate_info": []})
    return {"id": task_id, "description": {"purpose": "test"}, "user_scenario": scenario, "evaluation_criteria": criteria} | fields


def lines(file: Path, *records: Any) -> str:
    file.write_text("\n".join(json.dumps(one) for one in records) + "\n")
    return str(file)


def snapshot(file: Path, email: str) -> None:
    """A small retail database with one user."""
    database = json.loads(gzip.decompress((package_data() / "domains" / "retail" / "db.json.gz").read_bytes()))
    name, user = next(iter(database["users"].items()))
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"products": {}, "orders": {}, "users": {name: user | {"email": email}}}))


def test_a_path_stands_in_the_place_of_a_split():
    assert [is_task_file(split) for split in ("base", "data/a.json", "a.jsonl", "jsonl")] == [False, True, True, False]


def test_tasks_keep_the_files_order_and_are_found_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    retail = backend_of("retail")
    path = lines(tmp_path / "rl.jsonl", record("retail_2"), record("retail_1"))
    assert [task.task_id for task in retail.tasks(path)] == ["retail_2", "retail_1"]
    task = retail.task(path, "retail_1")
    assert task.actions[0].arguments == {"email": "a@example.com"}
    assert (task.reward_basis, task.domain) == (("DB", "COMMUNICATE"), "retail")
    with pytest.raises(UnknownTask, match="did you mean"):
        retail.task(path, "retail_11")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps([record()]))
    assert [task.task_id for task in retail.tasks("list.json")] == ["retail_1"]


def test_one_file_serves_several_domains(tmp_path: Path):
    unnamed = record("mine") | {"user_scenario": {"instructions": "Say hello."}}
    prefixed = record("airline_9") | {"user_scenario": {"instructions": {"task_instructions": "Book."}}}
    path = lines(tmp_path / "rl.jsonl", record("retail_1"), record("airline_1"), record("telecom_1"), unnamed, prefixed)
    assert [task.task_id for task in backend_of("retail").tasks(path)] == ["retail_1", "mine"]
    assert [task.task_id for task in backend_of("airline").tasks(path)] == ["airline_1", "mine", "airline_9"]
    assert [task.task_id for task in backend_of("telecom-workflow").tasks(path)] == ["telecom_1", "mine"]
    with pytest.raises(InvalidTaskFile, match="no task of the domain airline"):
        backend_of("airline").tasks(lines(tmp_path / "retail.jsonl", record("retail_1")))


def test_each_task_starts_from_its_snapshot(tmp_path: Path):
    retail = backend_of("retail")
    snapshot(tmp_path / "dbs" / "one.json", "one@example.com")
    snapshot(tmp_path / "dbs" / "two.json", "two@example.com")
    records = [record(f"retail_{name}", db_path=f"dbs/{name}.json") for name in ("one", "two")]
    path = lines(tmp_path / "rl.jsonl", *records, record("retail_own"))
    answers = {
        task.task_id: [
            retail.new_session(task, solo=False).call("find_user_id_by_email", {"email": f"{name}@example.com"}).error
            for name in ("one", "two")
        ]
        for task in retail.tasks(path)
    }
    assert answers == {"retail_one": [False, True], "retail_two": [True, False], "retail_own": [True, True]}
    own = retail.new_session(retail.task("base", "0"), solo=False)
    assert retail.new_session(retail.task(path, "retail_own"), solo=False).db_hashes() == own.db_hashes()


def test_sessions_on_a_snapshot_are_isolated_and_the_snapshot_is_part_of_the_digest(tmp_path: Path):
    retail = backend_of("retail")
    snapshot(tmp_path / "db.json", "one@example.com")
    task = retail.tasks(lines(tmp_path / "rl.jsonl", record(db_path="db.json")))[0]
    one, other = retail.new_session(task, solo=False), retail.new_session(task, solo=False)
    user = one.call("find_user_id_by_email", {"email": "one@example.com"}).content
    address = {"address1": "1 Way", "address2": "", "city": "C", "state": "CA", "country": "USA", "zip": "1"}
    assert not one.call("modify_user_address", {"user_id": user, **address}).error
    assert one.fingerprint() != other.fingerprint() == retail.new_session(task, solo=False).fingerprint()
    snapshot(tmp_path / "other.json", "two@example.com")
    changed = retail.tasks(lines(tmp_path / "rl2.jsonl", record(db_path="other.json")))[0]
    assert changed.digest != task.digest != retail.tasks(lines(tmp_path / "rl3.jsonl", record()))[0].digest


def test_a_telecom_snapshot_is_toml(tmp_path: Path):
    telecom = backend_of("telecom")
    text = (package_data() / "domains" / "telecom" / "db.toml").read_text()
    (tmp_path / "db.toml").write_text(text.replace("John Smith", "Jane Smith"))
    task = telecom.tasks(lines(tmp_path / "rl.jsonl", record("telecom_1", db_path="db.toml")))[0]
    customer = telecom.new_session(task, solo=False).call("get_customer_by_id", {"customer_id": "C1001"}).content
    assert json.loads(customer)["full_name"] == "Jane Smith"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"id": None}, r"line 2 \(id None\): id: Input should be a valid string"),
        ({"user_scenario": None}, "user_scenario: Input should be"),
        ({"user_scenario": {"persona": "x"}}, "user_scenario.instructions: Field required"),
        ({"evaluation_criteria": "{"}, "line 2: evaluation_criteria: not JSON"),
        ({"evaluation_criteria": {"actions": [{"arguments": {}}]}}, "evaluation_criteria.actions.0.name: Field required"),
        (
            {"evaluation_criteria": {"actions": [{"name": "x", "arguments": "{}"}]}},
            "evaluation_criteria.actions.0.arguments: Input should be",
        ),
        ({"evaluation_criteria": {"reward_basis": ["GOOD"]}}, r"evaluation_criteria.reward_basis.0: Input should be 'DB'"),
        (
            {"initial_state": {"initialization_actions": [{"env_type": "us"}]}},
            "initial_state.initialization_actions.0.env_type: Input should be",
        ),
        ({"user_tools": "all"}, "user_tools: Input should be a valid list"),
        ({"id": "retail_1"}, "line 2: id: 'retail_1' is there already; give each task an id of its own"),
        ({"db_path": "nowhere.json"}, r"db_path: no file .*nowhere.json; it is relative to the task file's folder"),
    ],
)
def test_bad_records_are_errors_that_name_file_record_field_and_remedy(tmp_path: Path, fault: dict[str, Any], said: str):
    path = lines(tmp_path / "bad.jsonl", record("retail_1"), record("retail_2") | fault)
    with pytest.raises(InvalidTaskFile, match=rf"bad\.jsonl: .*{said}"):
        backend_of("retail").tasks(path)


def test_bad_files_are_errors_that_name_the_file(tmp_path: Path):
    retail = backend_of("retail")
    with pytest.raises(InvalidTaskFile, match=r"gone\.jsonl: cannot be read .*name a readable"):
        retail.tasks(str(tmp_path / "gone.jsonl"))
    for name, content, said in [
        ("object.json", "{}", "is a dict; must be a list of tasks"),
        ("broken.json", "[", "not JSON"),
        ("number.jsonl", "3", "line 1: is a int; each task must be a JSON object"),
        ("cut.jsonl", json.dumps(record()) + '\n{"id"', "line 2: not JSON"),
        ("empty.jsonl", "\n", "no task of the domain retail"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidTaskFile, match=said):
            retail.tasks(str(tmp_path / name))
    with pytest.raises(UnknownSplit, match=r"or name a \.json or \.jsonl task file"):
        retail.tasks("mine")


def test_a_snapshot_that_is_no_database_of_the_domain_fails_the_session(tmp_path: Path):
    (tmp_path / "db.json").write_text('{"users": {"u": {}}, "products": {}, "orders": {}, "x": 1}')
    task = backend_of("retail").tasks(lines(tmp_path / "rl.jsonl", record(db_path="db.json")))[0]
    with pytest.raises(ValueError, match=r"db\.json: not a RetailDB: users\.u\.user_id: Field required; .* more\)"):
        backend_of("retail").new_session(task, solo=False)
