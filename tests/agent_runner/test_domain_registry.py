"""Which back end plays a domain, and that each is opened once per process."""

import pytest

from services.agent_runner.domains import DOMAINS, UnknownDomain, UnknownTask, open_backend, warm_up
from services.agent_runner.domains.tau2 import tau2_available


def test_every_domain_of_tau2_is_there():
    assert set(DOMAINS) == {"airline", "retail", "telecom", "telecom-workflow", "banking_knowledge", "mock"}


def test_a_back_end_is_opened_once():
    assert open_backend("retail", "inspect_evals") is open_backend("retail", "inspect_evals")
    assert open_backend("telecom", "inspect_evals") is not open_backend("telecom-workflow", "inspect_evals")


def test_auto_takes_upstream_only_where_it_is_installed():
    expected = "tau2" if tau2_available() else "inspect_evals"
    assert open_backend("retail") is open_backend("retail", expected)


def test_unknown_domains_are_refused_with_the_known_ones():
    with pytest.raises(UnknownDomain, match=r"'hotel'; known: airline, retail, telecom, telecom-workflow"):
        open_backend("hotel")


@pytest.mark.skipif(tau2_available(), reason="upstream is installed here")
def test_upstream_is_refused_where_it_is_not_installed():
    with pytest.raises(UnknownDomain, match="not installed"):
        open_backend("retail", "tau2")


def test_warming_up_leaves_nothing_to_wait_for():
    backend = open_backend("airline", "inspect_evals")
    warm_up(backend, "test")
    assert {"_own_base"} <= vars(backend).keys()


@pytest.mark.parametrize(("domain", "task_id", "close"), [("airline", "500", "50"), ("retail", "1133", "113")])
def test_unknown_tasks_are_refused_with_similar_ones(domain: str, task_id: str, close: str):
    backend = open_backend(domain, "inspect_evals")
    with pytest.raises(UnknownTask) as caught:
        backend.task("base", task_id)
    assert caught.value.close
    assert all(name in {task.task_id for task in backend.tasks("base")} for name in caught.value.close)


def test_workflow_differs_from_telecom_by_its_policy_alone():
    manual, workflow = open_backend("telecom", "inspect_evals"), open_backend("telecom-workflow", "inspect_evals")
    assert manual.splits() == workflow.splits()
    one, other = manual.tasks("small")[0], workflow.tasks("small")[0]
    assert (one.digest, one.domain, other.domain) == (other.digest, "telecom", "telecom-workflow")
    assert manual.tool_schemas(one, solo=True) == workflow.tool_schemas(other, solo=True)
    policies = {backend.policy(one, solo=solo) for backend in (manual, workflow) for solo in (False, True)}
    assert len(policies) == 4
    assert manual.new_session(one, solo=False).db_hashes() == workflow.new_session(other, solo=False).db_hashes()


def test_the_way_to_the_banks_documents_is_part_of_its_back_end():
    grep, golden = (
        open_backend("banking_knowledge", "inspect_evals"),
        open_backend("banking_knowledge", "inspect_evals", retrieval="golden_retrieval"),
    )
    task = grep.tasks("base")[0]
    names = [{tool["function"]["name"] for tool in backend.tool_schemas(task, solo=False)} for backend in (grep, golden)]
    assert names[0] - names[1] == {"grep"}
    assert open_backend("retail", "inspect_evals", retrieval="full_kb") is open_backend("retail", "inspect_evals")
