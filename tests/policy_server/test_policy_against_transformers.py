"""The engine's greedy tokens and log-probabilities are those of transformers."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_harness import CONFIG, SMALL, VOCAB, ids, save_model

from services.policy_server.engine import Engine
from services.policy_server.sampling import SamplingParams
from services.policy_server.sequences import GenerateRequest, GenerateResult

PREFIX = ids(1, 60)


def load_hf(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {version: save_model(root / version, seed) for version, seed in (("0", 3), ("1", 4))}


@pytest.fixture(scope="module")
def hf(folders: dict[str, Path]) -> dict[str, Any]:
    return {version: load_hf(folder) for version, folder in folders.items()}


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    engine = Engine(folders["0"], SMALL)
    engine.start()
    yield engine
    engine.stop()


def assert_logprobs(model: Any, prompt: list[int], result: GenerateResult, temperature: float) -> None:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *result.output_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(result.output_ids)[:, None])[:, 0]
    np.testing.assert_allclose(result.logprobs, expected.numpy(), atol=1e-4)
    assert np.abs(np.array(result.logprobs) - expected.numpy()).mean() < 1e-5


def request(prompt: list[int], **sampling: Any) -> GenerateRequest:
    return GenerateRequest(input_ids=prompt, sampling=SamplingParams(**{"max_new_tokens": 10, "ignore_eos": True, "seed": 1, **sampling}))


async def test_greedy_tokens(engine: Engine, hf: dict[str, Any]) -> None:
    prompts = [PREFIX + ids(i, 4 + 3 * i) for i in range(4)]
    results = await asyncio.gather(*(engine.generate(request(p, temperature=0.0, max_new_tokens=20)) for p in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        asked = torch.tensor([prompt])
        expected = hf["0"].generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=20, min_new_tokens=20, do_sample=False)
        logits = hf["0"](torch.tensor([[*prompt, *result.output_ids]])).logits[0, len(prompt) - 1 : -1]
        # min_new_tokens forbids the end token in transformers, which ignore_eos does not do here.
        if 0 not in result.output_ids:
            assert result.output_ids == expected[0, len(prompt) :].tolist()
        assert result.output_ids == logits.argmax(-1).tolist()
        assert_logprobs(hf["0"], prompt, result, 1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_sampled_logprobs_in_a_batch(engine: Engine, hf: dict[str, Any], temperature: float) -> None:
    prompts = [PREFIX + ids(10 + i, 5 + 2 * i) for i in range(6)]
    results = await asyncio.gather(*(engine.generate(request(p, temperature=temperature, seed=i)) for i, p in enumerate(prompts)))
    for prompt, result in zip(prompts, results, strict=True):
        assert_logprobs(hf["0"], prompt, result, temperature)


async def test_sessions_of_several_turns(engine: Engine, hf: dict[str, Any]) -> None:
    async def session(seed: int) -> None:
        tokens = PREFIX + ids(20 + seed % 2, 6)
        for turn in range(4):
            result = await engine.generate(request(tokens, seed=seed * 100 + turn))
            assert_logprobs(hf["0"], tokens, result, 1.0)
            assert turn == 0 or result.cached_tokens > len(PREFIX)
            tokens = tokens + result.output_ids + ids(seed * 10 + turn, 5)

    await asyncio.gather(*(session(seed) for seed in range(4)))


async def test_after_a_weight_update(engine: Engine, folders: dict[str, Path], hf: dict[str, Any]) -> None:
    before = await engine.generate(request(PREFIX))
    assert engine.update_weights(folders["1"], "1").result(10).success
    after = await engine.generate(request(PREFIX))
    assert (before.weight_version, after.weight_version) == ("0", "1")
    assert after.cached_tokens == 0
    assert_logprobs(hf["0"], PREFIX, before, 1.0)
    assert_logprobs(hf["1"], PREFIX, after, 1.0)


async def test_untied_embeddings_and_one_kv_head(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False, num_key_value_heads=1, rope_theta=1e6, vocab_size=VOCAB + 31)
    folder = save_model(tmp_path / "m", 5, config)
    engine = Engine(folder, SMALL)
    engine.start()
    try:
        result = await engine.generate(request(PREFIX))
        assert_logprobs(load_hf(folder), PREFIX, result, 1.0)
    finally:
        engine.stop()
