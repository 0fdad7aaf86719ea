"""Owns the sections that make an experiment run without any model from outside: the small policy and its SFT warm start."""

from pydantic import Field, field_validator

from services.common.config.base import Section
from services.common.config.datasets import DatasetRef


class PolicyInitConfig(Section):
    """The small random-weight Qwen3 policy made at set-up. A stand-in for a pretrained model, for laptops and tests.

    Used where ``actor.path`` is empty; with a path, that HF model is used instead.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    head_dim: int = 64
    max_position_embeddings: int = 16384
    rope_theta: float = 10000.0
    qk_norm_gain: float = Field(default=1.4, gt=0)
    """Initial weight of the query and key norms. They bound the attention scores by gain² · √head_dim; with the small heads of a small
    policy a gain of 1 cannot single out one token among thousands."""


class DemonstrationMix(Section):
    """Shares of demonstration quality; they need not sum to 1 and are normalised."""

    complete: float = Field(default=0.5, ge=0)
    gives_up: float = Field(default=0.3, ge=0)
    """Diagnoses, then calls ``done`` without the fix."""
    skips_step: float = Field(default=0.2, ge=0)
    """Leaves out one of the needed fixes."""


class SftConfig(Section):
    """The warm start: a mode of the trainer, fed through the same store as RL."""

    enabled: bool = False
    dataset: str = "telecom/full"
    """domain/split, or domain:FILE, the demonstrations are played on."""
    exclude_split: str = "small"
    """Tasks of this split are never demonstrated, so that RL and evaluation see tasks that SFT did not."""
    max_actions: int = Field(default=0, ge=0)
    """Only tasks with at most this many reference actions are demonstrated; 0 = all."""
    n_demonstrations: int = Field(default=384, ge=1)
    mix: DemonstrationMix = DemonstrationMix()
    steps: int = Field(default=60, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Demonstrations per optimizer step."""
    lr: float = 4e-3
    warmup_steps: int = 6
    min_lr_ratio: float = 0.05
    weight_decay: float = 0.0
    beta2: float = 0.98
    prefix_tokens: int = Field(default=0, ge=0)
    """Tokens of the shared prefix that a thinned step keeps; 0 = every step sees all of it (services/trainer/thinning.py)."""
    full_prefix_steps: int = Field(default=10, ge=0)
    """The last steps, which see the whole prefix."""

    @field_validator("dataset")
    @classmethod
    def _names_a_dataset(cls, name: str) -> str:
        DatasetRef.parse(name)
        return name
