"""The experiment configuration: one YAML, read by every service, with AReaL's key names."""

from services.common.config.experiment import ExperimentConfig
from services.common.config.loader import ConfigError, load_config, to_yaml
from services.common.config.services import Endpoint, ServiceName, ServicesConfig

__all__ = ["ConfigError", "Endpoint", "ExperimentConfig", "ServiceName", "ServicesConfig", "load_config", "to_yaml"]
