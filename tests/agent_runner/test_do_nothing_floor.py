"""What doing nothing earns, by domain and split."""

from typing import Any

import pytest

from services.agent_runner.domains import DomainBackend, TaskSpec, UnknownSplit, open_backend
from services.agent_runner.reward.floor import Floors, do_nothing_floor


@pytest.mark.parametrize(
    ("domain", "split", "solo", "reward", "n_tasks"),
    [
        # The data in the package is older than upstream's, where airline's base gives 23 of 50.
        ("airline", "base", False, 19, 50),
        ("airline", "test", False, 6, 20),
        ("retail", "base", False, 10, 114),
        ("telecom", "base", False, 0, 114),
        ("telecom", "small", True, 0, 20),
        ("mock", "base", False, 1, 9),
        ("mock", "base", True, 1, 7),
    ],
)
async def test_the_floor_of_each_domain(monkeypatch: pytest.MonkeyPatch, domain: str, split: str, solo: bool, reward: float, n_tasks: int):
    monkeypatch.delenv("TAU2_DATA_DIR", raising=False)
    floor = await Floors("db+judge").of(open_backend(domain, "inspect_evals"), split, solo=solo)
    assert (sum(floor.rewards.values()), floor.n_tasks) == (reward, n_tasks)
    assert floor.mean == pytest.approx(reward / n_tasks)


async def test_a_floor_is_computed_once(telecom: DomainBackend):
    floors = Floors("db")
    assert await floors.of(telecom, "small", solo=True) is await floors.of(telecom, "small", solo=True)
    with pytest.raises(UnknownSplit):
        await floors.of(telecom, "nope", solo=True)


def retail_task(**criteria: Any) -> TaskSpec:
    everything = {"actions": [], "nl_assertions": [], "communicate_info": [], "reward_basis": ["DB", "NL_ASSERTION"]}
    return TaskSpec("retail", {"id": "x", "user_scenario": {"instructions": "?"}, "evaluation_criteria": everything | criteria})


@pytest.mark.parametrize(
    ("criteria", "variant", "expected"),
    [
        ({}, "db+judge", 1.0),
        ({"nl_assertions": ["says so"]}, "db+judge", 0.0),
        ({"nl_assertions": ["says so"]}, "db", 1.0),
        ({"communicate_info": ["42"]}, "db+communicate", 0.0),
        ({"communicate_info": ["42"]}, "db+judge", 1.0),
    ],
)
def test_the_floor_depends_on_retails_variant_and_takes_no_judges_favour(criteria: Any, variant: Any, expected: float):
    backend = open_backend("retail", "inspect_evals")
    assert do_nothing_floor(backend, [retail_task(**criteria)], solo=False, retail_reward=variant).mean == expected


def test_tasks_that_cannot_be_played_solo_have_no_floor(mock: DomainBackend):
    (task,) = [task for task in mock.tasks("base") if task.task_id == "update_task_with_message_history"]
    assert do_nothing_floor(mock, [task], solo=True, retail_reward="db").mean is None
