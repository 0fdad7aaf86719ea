"""Small policies, a scheduler that is driven by hand, and the cache-free reference that answers are checked against."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from services.common.nn.flash import attend_causal
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, save_weights
from services.policy_server.sampling import SamplingParams, sample, uniform
from services.policy_server.scheduler import Scheduler
from services.policy_server.sequences import GenerateResult, Sequence
from services.policy_server.settings import EngineSettings
from services.policy_server.weights import Weights

VOCAB = 97
CONFIG = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1024,
    eos_token_id=0,
)
SMALL = EngineSettings(
    max_running_requests=4,
    max_queued_requests=8,
    max_tail_tokens=48,
    kv_slots=6,
    min_trunk_tokens=16,
    max_trunk_tokens=256,
    prefill_tokens_per_step=20,
    build_tokens_per_step=12,
)
"""So small that splits, moves of full tails, copies, evictions and chunks all happen within a few dozen tokens."""


def make_model(seed: int, config: Qwen3Config = CONFIG) -> Qwen3:
    """A random model whose distributions are far from uniform, so that a wrong key shows."""
    model = Qwen3(config)
    init_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0 if "self_attn" in name else 4.0)
    return model.eval()


def save_model(folder: Path, seed: int, config: Qwen3Config = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(make_model(seed, config), folder)
    return folder


def ids(seed: int, n: int) -> list[int]:
    """Random token ids without the end token."""
    return np.random.default_rng(seed).integers(1, VOCAB, n).tolist()


def full_logits(model: Qwen3, tokens: Iterable[int]) -> torch.Tensor:
    """Logits of every position by one causal pass without any cache, [N, V]."""

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        wide = (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        return attend_causal(*(x.transpose(0, 1)[None] for x in wide))[0][0].transpose(0, 1)

    with torch.inference_mode():
        ids_N = torch.tensor(list(tokens))
        return model.logits(model(ids_N, torch.arange(len(ids_N)), attend))


def check(models: dict[str, Qwen3], prompt: list[int], params: SamplingParams, result: GenerateResult) -> None:
    """Every output token is the one that a cache-free pass of its version's model samples, with the same log-probability."""
    output = result.output_ids
    assert [span.start for span in result.weight_versions] == [0, *[span.end for span in result.weight_versions[:-1]]][
        : len(result.weight_versions)
    ]
    assert sum(span.end - span.start for span in result.weight_versions) == len(output) == len(result.logprobs)
    for span in result.weight_versions:
        logits = full_logits(models[span.version], [*prompt, *output])
        for at in range(span.start, span.end):
            position = len(prompt) + at
            expected, logp = sample(logits[position - 1 : position], [params], [uniform(params.seed or 0, position)])
            assert output[at] == expected[0], f"token {at} of {len(output)}"
            assert abs(result.logprobs[at] - logp[0]) < 1e-4


class Bench:
    """A scheduler with named models, stepped by the test."""

    def __init__(self, settings: EngineSettings = SMALL, seed: int = 0, config: Qwen3Config = CONFIG) -> None:
        self.models = {"0": make_model(seed, config)}
        self.results: dict[str, GenerateResult] = {}
        self.sent: dict[str, tuple[list[int], SamplingParams]] = {}
        self.scheduler = Scheduler(self._weights("0"), settings, self._finish)

    def _weights(self, version: str) -> Weights:
        return Weights(self.models[version], frozenset({0}), version, "memory")

    def _finish(self, sequence: Sequence) -> None:
        self.results[sequence.rid] = sequence.result(self.scheduler.weights.version)

    def submit(self, prompt: list[int], seed: int = 1, **sampling: object) -> str:
        params = SamplingParams(**{"max_new_tokens": 8, "ignore_eos": True, **sampling}, seed=seed)  # pyright: ignore[reportArgumentType]
        rid = f"r{len(self.sent)}"
        self.sent[rid] = (prompt, params)
        self.scheduler.submit(Sequence(rid, np.array(prompt, np.int32), params, seed))
        return rid

    def update(self, version: str) -> None:
        self.models[version] = make_model(int(version) + 100, self.models["0"].config)
        self.scheduler.swap(self._weights(version))

    def run(self, steps: int = 10_000) -> None:
        """Steps until nothing is left, or so many times."""
        with torch.inference_mode():
            for _ in range(steps):
                if self.scheduler.idle:
                    return
                self.scheduler.step()
        assert steps < 10_000, "the scheduler does not come to an end"

    def finish(self) -> None:
        """Runs to the end and checks every result and the books of the cache."""
        self.run()
        for rid, (prompt, params) in self.sent.items():
            check(self.models, prompt, params, self.results[rid])
        self.check_cache()

    def ask(self, prompt: list[int], seed: int = 1, **sampling: object) -> GenerateResult:
        """One request, alone."""
        rid = self.submit(prompt, seed, **sampling)
        self.run()
        return self.results[rid]

    def check_cache(self) -> None:
        cache = self.scheduler.cache
        segments = list(cache.trunk.segments())
        assert cache.trunk.tokens == sum(len(segment.tokens) for segment in segments)
        assert not any(slot.busy for slot in cache.slots)
        for node in (cache.trunk.root, *segments):
            assert node.holders == sum(slot.node is node for slot in cache.slots)
        for segment in segments:
            assert segment.parent is not None and segment in segment.parent.children and segment.start == segment.parent.end
