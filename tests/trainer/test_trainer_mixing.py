"""Which dataset and which task each training group takes."""

import itertools
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_helpers import task_set

from services.common.config import ExperimentConfig
from services.trainer.mixing import TaskMix, turns
from services.trainer.sampler import epoch_index

MakeConfig = Callable[..., ExperimentConfig]
weights = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def shares_of(given_weights: list[int]) -> list[Fraction]:
    return [Fraction(weight, sum(given_weights)) for weight in given_weights]


@given(weights, st.integers(1, 300))
def test_every_part_has_its_share_to_within_one_turn_at_every_moment(given_weights: list[int], n: int) -> None:
    shares = shares_of(given_weights)
    counts = Counter[int]()
    for turn, which in enumerate(itertools.islice(turns(shares), n), 1):
        counts[which] += 1
        assert all(abs(counts[i] - turn * share) < 1 for i, share in enumerate(shares))


@given(weights)
def test_shares_are_exact_over_a_window_of_the_common_denominator(given_weights: list[int]) -> None:
    n = sum(given_weights)
    for window in (1, 2, 3):
        counts = Counter(itertools.islice(turns(shares_of(given_weights)), window * n))
        assert [counts[i] for i in range(len(given_weights))] == [window * weight for weight in given_weights]


def mix(config: ExperimentConfig, sizes: dict[str, int]) -> TaskMix:
    return TaskMix([task_set(name, n) for name, n in sizes.items()], config.train_dataset.shares(), config.seed)


def mixed_config(make_config: MakeConfig, **shares: float) -> ExperimentConfig:
    return make_config(
        train_dataset={"path": "", "mix": {name.replace("_", "/"): share for name, share in shares.items()}}, econfig={"solo_mode": False}
    )


def test_each_dataset_goes_through_shuffled_epochs_of_its_own(make_config: MakeConfig) -> None:
    config = mixed_config(make_config, telecom_train=0.5, airline_train=0.3, retail_train=0.2)
    tasks = mix(config, {"telecom/train": 5, "airline/train": 3, "retail/train": 2})
    drawn = [tasks.at(number) for number in range(30)]
    by_domain = {name: [task.task_id for ref, task in drawn if ref.domain == name] for name in ("telecom", "airline", "retail")}
    for name, size in (("telecom", 5), ("airline", 3), ("retail", 2)):
        ids = by_domain[name]
        assert len(ids) == 3 * size
        epochs = [ids[start : start + size] for start in range(0, len(ids), size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
    assert by_domain["telecom"][:5] != by_domain["telecom"][5:10]


def test_the_counter_alone_decides_so_a_resumed_run_goes_on_where_it_was(make_config: MakeConfig) -> None:
    config = mixed_config(make_config, telecom_train=0.6, airline_train=0.4)
    sizes = {"telecom/train": 7, "airline/train": 7}
    first = mix(config, sizes)
    drawn = [first.at(number) for number in range(50)]
    assert mix(config, sizes).at(37) == drawn[37]
    assert [first.at(number) for number in (5, 49, 0)] == [drawn[5], drawn[49], drawn[0]]
    other = mix(config.model_copy(update={"seed": 9}), sizes)
    assert [other.at(number) for number in range(50)] != drawn
    orders = [[task.task_id for ref, task in drawn if ref.domain == domain][:14] for domain in ("telecom", "airline")]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("form", [{"path": "telecom/small"}, {"path": "", "mix": {"telecom/small": 3.0}}])
def test_one_dataset_goes_through_the_epochs_of_the_experiments_seed(make_config: MakeConfig, form: dict[str, object]) -> None:
    config = make_config(train_dataset=form)
    given_set = task_set("telecom/small", 5)
    tasks = mix(config, {"telecom/small": 5})
    assert [tasks.at(n)[1] for n in range(20)] == [given_set.tasks[epoch_index(5, n, config.seed)] for n in range(20)]
