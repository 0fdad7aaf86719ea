"""What a start does with the trial's folder: begin, resume, refuse, never overwrite silently."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ExperimentConfig, load_config
from services.launcher.trial import Condition, Facts, TrialError, different_keys, open_trial

Load = Callable[..., ExperimentConfig]

TREES = st.recursive(
    st.integers() | st.none() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def load(config_file: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.delenv("FRONTDESK_ADMIN_KEY", raising=False)
    return lambda *more: load_config(config_file, [*overrides, *more])


def begin(config: ExperimentConfig) -> Path:
    with open_trial(config) as trial:
        assert trial.condition is Condition.NEW
        trial.begin()
        return trial.directory


def test_begun_trial_is_resumed_from_the_stored_config(load: Load) -> None:
    directory = begin(load())
    assert load_config(directory / "config.yaml") == load()
    with open_trial(load()) as trial:
        assert (trial.condition, trial.changed) == (Condition.UNFINISHED, [])


def test_finished_trial_is_known_by_the_launchers_own_key(load: Load) -> None:
    directory = begin(load())
    results = directory / "results.json"
    for content, expected in (({"reward_after": 1}, Condition.UNFINISHED), ({"restarts": {}}, Condition.FINISHED)):
        results.write_text(json.dumps(content))
        with open_trial(load()) as trial:
            assert trial.condition is expected


def test_recover_disabled_refuses_an_existing_trial(load: Load) -> None:
    begin(load())
    with (
        pytest.raises(TrialError, match=r"exists and recover.mode is disabled: choose another trial_name"),
        open_trial(load("recover.mode=disabled")),
    ):
        pass


def test_other_experiment_under_the_same_name_is_refused(load: Load) -> None:
    directory = begin(load())
    stored = (directory / "config.yaml").read_text()
    with (
        pytest.raises(TrialError, match=r"begun with other values of actor.optimizer.lr, seed "),
        open_trial(load("seed=7", "actor.optimizer.lr=0.5")),
    ):
        pass
    assert (directory / "config.yaml").read_text() == stored


def test_other_ports_are_allowed_and_named(load: Load) -> None:
    begin(load())
    with open_trial(load("services.trainer.port=4242", "log_level=DEBUG")) as trial:
        assert trial.changed == ["log_level", "services.trainer.port"]


def test_second_launcher_is_refused(load: Load) -> None:
    with (
        open_trial(load()),
        pytest.raises(TrialError, match=rf"is run by another launcher \(pid {os.getpid()}\)"),
        open_trial(load()),
    ):
        pass


def test_folder_that_is_no_trial_is_left_alone(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "e" / "t"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(TrialError, match=r"is no trial \(it has no config.yaml\)"), open_trial(load()):
        pass
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_admin_key_is_made_once_and_private(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_trial(load()) as trial:
        key = trial.admin_key()
        assert len(key) >= 32 and trial.admin_key() == key
        assert stat.S_IMODE((trial.directory / "admin_key").stat().st_mode) == 0o600
        monkeypatch.setenv("FRONTDESK_ADMIN_KEY", "given")
        assert trial.admin_key() == "given"


def test_facts_survive(load: Load) -> None:
    with open_trial(load()) as trial:
        assert trial.load_facts() == Facts()
        trial.save_facts(Facts(12.5, {"redis": 2}))
        assert trial.load_facts() == Facts(12.5, {"redis": 2})


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_no_different_keys_exactly_where_equal(left: dict[str, object], right: dict[str, object]) -> None:
    assert (different_keys(left, right) == []) == (left == right)
    assert different_keys(left, right) == different_keys(right, left)
