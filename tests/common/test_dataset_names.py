"""How datasets and their mix are written in the config."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.config import ConfigError, ExperimentConfig, load_config, to_yaml
from services.common.config.datasets import DatasetRef


def load(tmp_path: Path, text: str, *overrides: str) -> ExperimentConfig:
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    return load_config(file, overrides)


@given(st.from_regex(r"[a-z][a-z_-]{0,10}", fullmatch=True), st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True))
def test_a_name_is_read_as_it_is_written(domain: str, split: str) -> None:
    for name in (f"{domain}/{split}", f"{domain}:/data/{split}.jsonl", f"{domain}:{split}.json"):
        assert str(DatasetRef.parse(name)) == name
    assert DatasetRef.parse(f"{domain}:/a b/{split}.json").is_file and not DatasetRef.parse(f"{domain}/{split}").is_file


@pytest.mark.parametrize(
    "name", ["telecom", "telecom/", "/small", "telecom/a/b", "retail:/data/tasks.csv", "retail:.json", "/data/x.jsonl", ""]
)
def test_what_is_no_dataset_is_refused_with_the_way_to_write_one(name: str) -> None:
    with pytest.raises(ValueError, match="domain/split"):
        DatasetRef.parse(name)


def test_a_mix_takes_the_place_of_the_path_and_its_shares_are_normalised_exactly(tmp_path: Path) -> None:
    text = "train_dataset: {batch_size: 4, mix: {telecom/train: 0.5, airline/train: 0.3, retail:/data/tasks.jsonl: 0.7}}"
    config = load(tmp_path, text)
    assert list(config.train_dataset.shares().items()) == [
        (DatasetRef("telecom", "train"), Fraction(1, 3)),
        (DatasetRef("airline", "train"), Fraction(1, 5)),
        (DatasetRef("retail", "/data/tasks.jsonl"), Fraction(7, 15)),
    ]
    assert load(tmp_path, to_yaml(config)) == config
    assert load(tmp_path, "{}").train_dataset.shares() == {DatasetRef("telecom", "small"): 1}
    assert len(load(tmp_path, "{}", "valid_dataset.mix={mock/a: 1, airline/test: 1}").valid_dataset.shares()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_dataset: {path: telecom}", "dataset 'telecom': write it as domain/split"),
        ("train_dataset: {mix: {telecom: 1}}", "dataset 'telecom': write it as domain/split"),
        ("train_dataset: {path: telecom/small, mix: {telecom/train: 1}}", "give either path or mix"),
        ("train_dataset: {path: ''}", "give either path or mix"),
        ("train_dataset: {mix: {telecom/train: 0}}", "train_dataset.mix.telecom/train: Input should be greater than 0"),
        ("train_dataset: {mix: {telecom/train: .inf}}", "train_dataset.mix.telecom/train"),
        ("train_dataset: {mixx: {telecom/train: 1}}", "did you mean train_dataset.mix?"),
        ("sft: {dataset: telecom}", "sft.dataset: Value error, dataset 'telecom'"),
    ],
)
def test_a_wrong_dataset_is_an_error_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
