"""Owns a Qwen3 decoder over a flat sequence of tokens, with the parameter names of Hugging Face's Qwen3 files.

The model knows nothing about batches, caches or masks: the caller passes positions and an `Attend` function that decides what each
token sees. That is what lets the policy server attend to a shared prefix without copying it and the trainer train on a packed tree.
Refuses everything a small dense Qwen3 does not have (sliding windows, biases, experts, rope scaling) with an error that names the key.

Shape suffixes: N tokens, D hidden, H query heads, K key/value heads, E head dimension, V vocabulary.
Architecture: Qwen3 Technical Report (arXiv 2505.09388), as in transformers' ``Qwen3ForCausalLM``.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_NHE, k_NKE, v_NKE) -> out_NHE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    """The keys of a Qwen3 ``config.json`` that matter here."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    eos_token_id: int = 0

    @classmethod
    def load(cls, folder: Path) -> "Qwen3Config":
        """Reads ``config.json``. Raises ValueError for an architecture this module does not implement."""
        raw = cast("dict[str, Any]", json.loads((folder / "config.json").read_text(encoding="utf-8")))
        if raw.get("model_type") != "qwen3":
            raise ValueError(f"{folder}/config.json: model_type is {raw.get('model_type')!r}, this engine runs qwen3 only")
        for key in ("attention_bias", "use_sliding_window"):
            if raw.get(key):
                raise ValueError(f"{folder}/config.json: {key} is set, this engine does not implement it; use SGLang for this model")
        rope: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"{folder}/config.json: rope_type {rope['rope_type']!r} is not implemented; use SGLang for this model")
        known = {name: raw[name] for name in cls.__dataclass_fields__ if raw.get(name) is not None}
        known["rope_theta"] = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = known["eos_token_id"][0]
        return cls(**known)

    def to_hf(self) -> dict[str, Any]:
        """The content of ``config.json`` for transformers and SGLang."""
        own = asdict(self)
        theta = own.pop("rope_theta")
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "torch_dtype": "float32",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "use_cache": True,
            "initializer_range": 0.02,
            "rope_theta": theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            **own,
        }


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Projections, query/key norm and rotary embedding around the caller's `Attend`."""

    def __init__(self, c: Qwen3Config) -> None:
        super().__init__()
        self.shape_q = (c.num_attention_heads, c.head_dim)
        self.shape_kv = (c.num_key_value_heads, c.head_dim)
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x_ND: Tensor, cos_N1E: Tensor, sin_N1E: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        q_NHE = rotate(self.q_norm(self.q_proj(x_ND).unflatten(-1, self.shape_q)), cos_N1E, sin_N1E)
        k_NKE = rotate(self.k_norm(self.k_proj(x_ND).unflatten(-1, self.shape_kv)), cos_N1E, sin_N1E)
        v_NKE = self.v_proj(x_ND).unflatten(-1, self.shape_kv)
        return self.o_proj(attend(q_NHE, k_NKE, v_NKE).flatten(-2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: Qwen3Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_ND)) * self.up_proj(x_ND))


class Layer(nn.Module):
    """One decoder layer (pre-norm, residual)."""

    def __init__(self, c: Qwen3Config) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x_ND: Tensor, cos_N1E: Tensor, sin_N1E: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND), cos_N1E, sin_N1E, attend)
        return x_ND + self.mlp(self.post_attention_layernorm(x_ND))


class Trunk(nn.Module):
    """Embedding, layers and final norm: Hugging Face's ``model.`` prefix."""

    def __init__(self, c: Qwen3Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Qwen3(nn.Module):
    """The policy."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos_PE, sin_PE = rotary_table(config)
        self.register_buffer("cos_PE", cos_PE, persistent=False)
        self.register_buffer("sin_PE", sin_PE, persistent=False)

    def forward(self, ids_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm, [N, D]. ``ids_N`` and ``positions_N`` are int64; ``attend`` is called once a layer."""
        x_ND = self.model.embed_tokens(ids_N)
        cos_N1E = cast(Tensor, self.cos_PE)[positions_N].unsqueeze(1)
        sin_N1E = cast(Tensor, self.sin_PE)[positions_N].unsqueeze(1)
        for index, layer in enumerate(self.model.layers):
            x_ND = layer(x_ND, cos_N1E, sin_N1E, partial(attend, index))
        return self.model.norm(x_ND)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Next-token logits, [N, V]."""
        return self.lm_head(hidden_ND)


def rotary_table(c: Qwen3Config) -> tuple[Tensor, Tensor]:
    """cos and sin [max_position, E] of rotary embedding in the half-split layout that Hugging Face uses."""
    inverse_E2 = 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
    angle_PE2 = torch.arange(c.max_position_embeddings, dtype=torch.float32)[:, None] * inverse_E2
    angle_PE = torch.cat((angle_PE2, angle_PE2), -1)
    return angle_PE.cos(), angle_PE.sin()


def rotate(x_NHE: Tensor, cos_N1E: Tensor, sin_N1E: Tensor) -> Tensor:
    """Applies rotary embedding (arXiv 2104.09864)."""
    first, second = x_NHE.chunk(2, -1)
    return x_NHE * cos_N1E + torch.cat((-second, first), -1) * sin_N1E


def init_weights(model: Qwen3, seed: int, qk_norm_gain: float = 1.0) -> None:
    """Fresh random weights: normal(0, 0.02), output projections scaled down by depth (GPT-2's rule), norms at one.

    ``qk_norm_gain`` is the initial weight of the query and key norms instead.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / (2 * model.config.num_hidden_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(qk_norm_gain if ".self_attn." in name else 1.0)
                continue
            std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            parameter.normal_(0.0, std, generator=generator)


def load_model(folder: Path) -> Qwen3:
    """The model in a Hugging Face folder, fp32. Raises ValueError for an unknown architecture or missing weights."""
    model = Qwen3(Qwen3Config.load(folder))
    load_weights(model, folder)
    return model


def load_weights(model: Qwen3, folder: Path) -> None:
    """Copies the weights of a Hugging Face folder into ``model``. Raises ValueError where names or shapes differ."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no .safetensors file")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(load_file(file))
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: weights do not fit: {error}") from error


def save_weights(model: Qwen3, folder: Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into an existing folder, in Hugging Face's form."""
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n", encoding="utf-8")
