"""Our Qwen3 is Hugging Face's Qwen3: same file format, same logits; and attention in parts is attention."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.common.nn import flash
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, load_model, save_weights

CONFIG = Qwen3Config(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)


def causal(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_NHE, k_NKE, v_NKE))
    repeat = q.shape[1] // k.shape[1]
    out, _ = flash.attend_causal(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tied: bool, tmp_path: Path) -> None:
    model = Qwen3(Qwen3Config(**{**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, "tie_word_embeddings": tied}))
    init_weights(model, seed=3, qk_norm_gain=1.4)
    save_weights(model, tmp_path)
    ours, theirs = load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, CONFIG.vocab_size, (60,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine = ours.logits(ours(ids, torch.arange(60), causal))
        assert (mine - theirs(ids[None]).logits[0]).abs().max() < 1e-5


def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="runs qwen3 only"):
        Qwen3Config.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "use_sliding_window": true}')
    with pytest.raises(ValueError, match="use_sliding_window"):
        Qwen3Config.load(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_weights(Qwen3(CONFIG), tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"hidden_size": 48', '"hidden_size": 32')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_model(tmp_path)


def test_two_parts_of_a_softmax_merge_to_the_whole() -> None:
    draw = torch.Generator().manual_seed(5)
    q_NHE = torch.randn(7, 4, 16, generator=draw)
    k, v = (torch.randn(1, 2, 90, 16, generator=draw) for _ in range(2))
    q = flash.fold(q_NHE, 2)
    whole, whole_lse = flash.attend_part(q, k, v)
    parts = [flash.attend_part(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 50), slice(50, 90))]
    merged, lse = flash.merge(*parts[0], *parts[1])
    assert (merged - whole).abs().max() < 1e-6
    assert (lse - whole_lse).abs().max() < 1e-5
    assert torch.equal(flash.unfold(q, 7), q_NHE)
