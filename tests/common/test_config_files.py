"""An experiment file is read strictly: what is wrong is named with its remedy, overrides win, the environment moves endpoints."""

from pathlib import Path

import pytest

from services.common.config import ConfigError, ServicesConfig, load_config, to_yaml
from services.common.config.services import SERVICE_NAMES

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_loads_and_its_resolved_form_loads_to_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    assert load_config(written(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("actor: {optimiser: {}}", "actor.optimiser: unknown key, did you mean actor.optimizer?"),
        ("gconfg: {}", "gconfg: unknown key, did you mean gconfig?"),
        ("actor: {optimizer: {learning: 1}}", "actor.optimizer.learning: unknown key"),
        ("gconfig: {n_samples: 0}", "gconfig.n_samples: Input should be greater than or equal to 1 (got 0)"),
        ("services: {policy_server: {prt: 1}}", "did you mean services.policy_server.port?"),
        ("- a list", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_remedy(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(written(tmp_path, text))
    assert says in str(refusal.value)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")


def test_overrides_win_and_make_sections_that_the_file_lacks(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "actor: {eps_clip: 0.3}"), ["actor.eps_clip=0.4", "actor.optimizer.lr=1e-5", "seed=7"])
    assert (config.actor.eps_clip, config.actor.optimizer.lr, config.seed) == (0.4, 1e-5, 7)


@pytest.mark.parametrize("override", ["seed", "=1", "seed.deeper=1", "seed=[1"])
def test_a_malformed_override_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="override"):
        load_config(written(tmp_path, "seed: 1"), [override])


def test_ports_differ_and_the_environment_moves_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    services = ServicesConfig()
    ports = [services.endpoint(name).port for name in SERVICE_NAMES]
    assert len(set(ports)) == len(ports)
    assert services.url("trainer") == "http://127.0.0.1:8105"
    monkeypatch.setenv("FRONTDESK_TRAINER_URL", "http://elsewhere:1")
    assert services.url("trainer") == "http://elsewhere:1"
    monkeypatch.setenv("FRONTDESK_TRAINER_URL", "elsewhere:1")
    with pytest.raises(ValueError, match="FRONTDESK_TRAINER_URL: 'elsewhere:1' must be an http"):
        services.url("trainer")


@pytest.mark.parametrize("url", ["localhost:30000", "ftp://x", "http://", "http://x:0", "http://x:99999"])
def test_addresses_are_checked_when_the_config_is_read(tmp_path: Path, url: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"services: {{policy_proxy: {{server_urls: ['{url}']}}}}\n")
    with pytest.raises(ConfigError, match=r"services\.policy_proxy\.server_urls"):
        load_config(file, [])
