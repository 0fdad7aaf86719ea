"""Owns the shape of an experiment: AReaL's sections and key names, plus Frontdesk's own (``services``, ``policy_init``, ``sft``)."""

from fractions import Fraction
from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from services.common.config.base import HttpUrl, Section
from services.common.config.datasets import DatasetRef
from services.common.config.laptop import PolicyInitConfig, SftConfig
from services.common.config.services import ServicesConfig


class ClusterConfig(Section):
    """Where files go."""

    fileroot: str = "experiments"
    """Everything an experiment writes lies below; shared between nodes where there are several."""
    n_nodes: int = 1
    n_gpus_per_node: int = 0


class GenerationConfig(Section):
    """gconfig: how the policy samples."""

    n_samples: int = Field(default=8, ge=1)
    """Episodes of a group."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Per call."""
    max_tokens: int = Field(default=16384, ge=1)
    """Context limit of a session."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    greedy: bool = False


class AgentConfig(Section):
    """rollout.agent: how the proxy reads what the policy says."""

    tool_call_parser: str = "qwen25"
    reasoning_parser: str = "qwen3"
    chat_template: str = ""
    """A Jinja file that is used instead of the chat templates that come with the model's tokenizer."""
    turn_discount: float = 1.0


class RolloutConfig(Section):
    """rollout: asynchrony."""

    backend: str = ""
    """AReaL's allocation string such as ``sglang:d6``; empty on a laptop."""
    max_concurrent_rollouts: int | None = None
    """Groups in flight; default ``consumer_batch_size`` times 2."""
    consumer_batch_size: int | None = Field(default=None, ge=1)
    """Groups per PPO step; default, and nothing else here, ``train_dataset.batch_size``."""
    max_head_offpolicyness: int = Field(default=0, ge=0)
    agent: AgentConfig = AgentConfig()


class NormConfig(Section):
    """reward_norm, adv_norm."""

    mean_level: Literal["batch", "group"] | None = "batch"
    std_level: Literal["batch", "group"] | None = "batch"
    mean_leave1out: bool = False
    eps: float = 1e-5


class OptimizerConfig(Section):
    """actor.optimizer."""

    type: Literal["adam"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    gradient_clipping: float = 1.0
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps_proportion: float = Field(default=0.001, ge=0, le=1)
    min_lr_ratio: float = 0.0
    max_kl: float = Field(default=0.0, ge=0)
    """Nats per token that one PPO update may move the policy by: of one that moves it further only a share is made
    (services/trainer/trust.py), which takes one more forward pass. 0 = no bound."""


class RejectionSamplingConfig(Section):
    """actor.rejection_sampling: what happens to tokens whose behaviour policy is far away."""

    level: Literal["token"] = "token"
    action: Literal["mask", "clamp"] = "mask"
    metric: Literal["ratio"] = "ratio"
    upper: float = 5.0
    lower: float | None = None


class ActorConfig(Section):
    """actor: the policy and how it is trained (AReaL's PPOActorConfig)."""

    backend: str = "torch"
    """``torch`` here; AReaL's ``archon:…``, ``megatron:…``, ``fsdp:…`` on a cluster."""
    path: str = ""
    """HF model folder; empty = a small random policy made at set-up (policy_init)."""
    ppo_n_minibatches: int = Field(default=1, ge=1)
    eps_clip: float = 0.2
    eps_clip_higher: float | None = None
    c_clip: float | None = None
    reward_scaling: float = 1.0
    reward_bias: float = 0.0
    reward_clip: float = 20.0
    kl_ctl: float = 0.0
    discount: float = 1.0
    gae_lambda: float = 1.0
    recompute_logprob: bool = True
    use_decoupled_loss: bool = True
    rejection_sampling: RejectionSamplingConfig | None = RejectionSamplingConfig()
    reward_norm: NormConfig | None = NormConfig(mean_level="group", std_level="group")
    adv_norm: NormConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    max_tokens_per_mb: int = 32768
    """Unique tokens per packed tree."""


class DatasetConfig(Section):
    """train_dataset, valid_dataset: one dataset, or several with their shares."""

    path: str = "telecom/small"
    """domain/split, or domain:FILE for a task file (services/common/config/datasets.py). Left out where ``mix`` is given."""
    mix: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Several datasets, written as in ``path``, with their shares, which are normalised: of the groups (train_dataset), or in the mean over
    all of them (valid_dataset)."""
    batch_size: int = Field(default=1, ge=1)
    """Groups per step."""
    n_samples: int | None = None
    """valid_dataset: episodes per task of an evaluation pass."""

    @model_validator(mode="before")
    @classmethod
    def _mix_takes_the_place_of_path(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        given = cast("dict[str, Any]", raw)
        return {"path": "", **given} if given.get("mix") else given

    @model_validator(mode="after")
    def _names_are_datasets(self) -> "DatasetConfig":
        if bool(self.path) == bool(self.mix):
            raise ValueError("give either path or mix; a mix takes the place of path")
        if len(self.shares()) < len(self.mix):
            raise ValueError("mix: one dataset is named twice")
        return self

    def shares(self) -> dict[DatasetRef, Fraction]:
        """The datasets with their shares, which sum to 1 exactly."""
        # By way of their decimal form: 0.3 is to mean three tenths.
        given = {DatasetRef.parse(name): Fraction(str(share)) for name, share in (self.mix or {self.path: 1.0}).items()}
        return {ref: share / sum(given.values()) for ref, share in given.items()}


class EnvConfig(Section):
    """econfig: the tau2 environment (AReaL's Tau2EnvConfig)."""

    domain: str = "telecom"
    max_steps: int = Field(default=100, ge=1)
    max_errors: int = Field(default=10, ge=1)
    add_thinking_tool: bool = False
    solo_mode: bool = False
    user_llm_base_url: HttpUrl | None = None
    user_llm: str | None = None
    user_llm_args: dict[str, Any] | None = None
    turn_discount: float = Field(default=1.0, ge=0, le=1)
    """A turn's reward is that of the turns after it, discounted by this for each; where it is 1, ``rollout.agent.turn_discount`` counts."""
    invalid_format_penalty: float = Field(default=0.0, ge=0)
    """Subtracted at the turn whose tool call could not be parsed. AReaL's own default, 0.1, is read by nothing there."""
    backend: Literal["auto", "inspect_evals", "tau2"] = "auto"
    banking_retrieval: Literal["no_knowledge", "full_kb", "golden_retrieval", "grep_only", "bm25", "bm25_grep"] = "grep_only"
    """How an agent of banking_knowledge gets at the bank's documents (docs/banking.md)."""
    enforce_communication_protocol: bool = False
    """A message with both text and tool calls ends the episode as an error of whoever sent it (upstream's ``validate_communication``)."""
    retail_reward: Literal["db", "db+communicate", "db+judge"] = "db+judge"
    """What retail tasks are rewarded for. Upstream's rule is ``db+judge`` (see ``judge_llm``), before 1.0 it was ``db+communicate``."""
    judge_llm: str | None = None
    """The model that decides NL assertions; null = tasks that need one fail with the judge as the owner."""
    judge_llm_base_url: HttpUrl | None = None
    """Its OpenAI-compatible server; null = ``judge_llm`` is a litellm model name."""
    judge_llm_args: dict[str, Any] = {}
    """Added to each request; the temperature is 0 unless set here."""
    judge_timeout_s: float = Field(default=120.0, gt=0)
    """One question to the judge, with its retries."""


class DynamicFilterConfig(Section):
    """Which whole groups carry no signal and are dropped, by mean episode reward."""

    drop_above: float = 0.999
    drop_below: float = 0.001


class EvaluatorConfig(Section):
    """evaluator."""

    before: bool = True
    after: bool = True
    n_samples: int = Field(default=8, ge=1)
    greedy: bool = True
    """Also one greedy episode a task, reported beside."""
    seed: int = 1234


class RecoverConfig(Section):
    """recover: what a second start with the same experiment and trial name does."""

    mode: Literal["auto", "disabled"] = "auto"
    """``auto`` resumes; ``disabled`` refuses to touch an existing trial."""
    other_source: Literal["refuse", "drop"] = "refuse"
    """Training episodes from another back end or version than the run's: end the experiment, or drop them and go on."""


class SaverConfig(Section):
    """saver: checkpoints and published weights that are kept."""

    keep: int = Field(default=2, ge=1)


class ExperimentConfig(Section):
    """One experiment."""

    experiment_name: str = "frontdesk"
    trial_name: str = "trial0"
    seed: int = 1
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    total_train_steps: int = Field(default=10, ge=0)
    """PPO steps."""
    cluster: ClusterConfig = ClusterConfig()
    gconfig: GenerationConfig = GenerationConfig()
    rollout: RolloutConfig = RolloutConfig()
    actor: ActorConfig = ActorConfig()
    train_dataset: DatasetConfig = DatasetConfig()
    valid_dataset: DatasetConfig = DatasetConfig()
    econfig: EnvConfig = EnvConfig()
    dynamic_filter: DynamicFilterConfig | None = DynamicFilterConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    recover: RecoverConfig = RecoverConfig()
    saver: SaverConfig = SaverConfig()
    policy_init: PolicyInitConfig = PolicyInitConfig()
    sft: SftConfig = SftConfig()
    services: ServicesConfig = ServicesConfig()
