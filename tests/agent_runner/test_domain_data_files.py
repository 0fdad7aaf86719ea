"""Where a domain's files come from: the package, or the folder that TAU2_DATA_DIR names, in upstream's layout."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from services.agent_runner.domains import DomainBackend, UnknownDomain
from services.agent_runner.domains.data import DataFiles, package_data
from services.agent_runner.domains.inspect_evals import open_port

NEWEST = os.environ.get("TAU2_DATA_DIR")


@pytest.fixture(autouse=True)
def _package_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAU2_DATA_DIR", raising=False)


@pytest.fixture
def override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in upstream's layout with retail's files of the package, under upstream's names."""
    package, retail = package_data() / "domains" / "retail", tmp_path / "tau2" / "domains" / "retail"
    retail.mkdir(parents=True)
    (retail / "db.json").write_bytes(gzip.decompress((package / "db.json.gz").read_bytes()))
    shutil.copy(package / "tasks.json", retail)
    shutil.copy(package / "split_tasks.json", retail)
    monkeypatch.setenv("TAU2_DATA_DIR", str(tmp_path))
    return retail


def retail() -> DomainBackend:
    return open_port("retail")


def test_the_package_is_named_with_its_version(override: Path, monkeypatch: pytest.MonkeyPatch):
    assert DataFiles("airline").source.startswith("inspect-evals 0.26")
    assert "TAU2_DATA_DIR" not in DataFiles("airline").source  # the folder has no airline
    monkeypatch.delenv("TAU2_DATA_DIR")
    assert "TAU2_DATA_DIR" not in retail().source


def test_tasks_and_databases_of_the_folder_are_used_and_named_by_their_digest(override: Path):
    raw = json.loads((override / "tasks.json").read_text())
    raw[0]["user_scenario"]["instructions"]["reason_for_call"] = "Something else."
    before = retail().source
    (override / "tasks.json").write_text(json.dumps(raw))
    assert before.startswith("inspect-evals 0.26")
    assert " + TAU2_DATA_DIR " in before
    assert retail().tasks("base")[0].raw["user_scenario"]["instructions"]["reason_for_call"] == "Something else."

    database = json.loads((override / "db.json").read_text())
    name = next(iter(database["users"]))
    database["users"][name]["email"] = "new@example.com"
    (override / "db.json").write_text(json.dumps(database))
    backend = retail()
    found = backend.new_session(backend.tasks("base")[0], solo=False).call("find_user_id_by_email", {"email": "new@example.com"})
    assert found.content == name


def test_a_policy_of_the_folder_is_taken_to_the_letter_and_what_is_missing_comes_from_the_package(override: Path):
    backend = retail()
    assert backend.policy(backend.tasks("base")[0], solo=False) == (package_data() / "domains" / "retail" / "policy.txt").read_text()
    (override / "policy.md").write_text("# Policy\n")
    assert retail().policy(backend.tasks("base")[0], solo=False) == "# Policy\n"


def test_a_folder_without_tau2_data_is_an_error_that_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAU2_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(ValueError, match=r"TAU2_DATA_DIR: .*typo has no folder tau2/domains"):
        retail()


def test_a_broken_database_is_an_error_that_names_file_and_field(override: Path):
    database = json.loads((override / "db.json").read_text())
    name = next(iter(database["users"]))
    del database["users"][name]["email"]
    (override / "db.json").write_text(json.dumps(database))
    backend = retail()
    with pytest.raises(ValueError, match=rf"db\.json: not a RetailDB: users\.{name}\.email: Field required"):
        backend.new_session(backend.tasks("base")[0], solo=False)
    (override / "db.json").write_text("{")
    with pytest.raises(ValueError, match=r"db\.json: not a RetailDB"):
        retail().new_session(backend.tasks("base")[0], solo=False)


def test_domains_of_other_openers_are_refused_here():
    with pytest.raises(UnknownDomain, match="'mock' is none of airline, retail"):
        open_port("mock")


@pytest.mark.skipif(NEWEST is None, reason="set TAU2_DATA_DIR to a folder with the newest tau2 data")
@pytest.mark.parametrize("domain", ["airline", "retail", "telecom", "telecom-workflow"])
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_newest_data_plays(domain: str, monkeypatch: pytest.MonkeyPatch):
    """Every task of the newest release: a session starts and the reference actions run."""
    packaged = open_port(domain)
    monkeypatch.setenv("TAU2_DATA_DIR", str(NEWEST))
    backend = open_port(domain)
    assert " + TAU2_DATA_DIR " in backend.source
    tasks = backend.tasks("base")
    assert [task.task_id for task in tasks] == [task.task_id for task in packaged.tasks("base")]
    same = sum(task.digest == other.digest for task, other in zip(tasks, packaged.tasks("base"), strict=True))
    assert same == (len(tasks) if domain.startswith("telecom") else 0)
    results = []
    for task in tasks:
        session = backend.new_session(task, solo=False)
        results += [session.call(action.name, action.arguments, action.requestor) for action in task.actions]
    # Some reference actions fail by design of their task; none for want of a tool.
    assert sum(result.error for result in results) < 0.05 * len(results)
    assert not any(result.content.startswith("Error: Tool ") for result in results)
    assert packaged.policy(tasks[0], solo=False) == backend.policy(tasks[0], solo=False)
    assert packaged.user_guidelines(tasks[0]) == backend.user_guidelines(tasks[0])
