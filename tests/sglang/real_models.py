"""The policies of these tests, made on the spot: a small Qwen3 that was taught one conversation, and random ones of the same shape."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.config.laptop import PolicyInitConfig
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, load_model, save_weights
from services.trainer.model_init import make_model

Json = dict[str, Any]
SHAPE = PolicyInitConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=4096,
)
SHARPNESS = 2.0
"""Random embeddings are scaled by this: enough for two random policies to differ by tenths of nats, and too little for them to repeat
one token for ever, as tied embeddings make them do."""
TAUGHT_LOSS, MOST_STEPS = 0.005, 400

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Json = {"type": "function", "function": {"name": "get_weather", "description": "Today's weather.", "parameters": PARAMETERS}}
SYSTEM: Json = {"role": "system", "content": "You are a helpful assistant. Look before you answer, and answer in one short sentence."}
QUESTION: Json = {"role": "user", "content": "What is the weather in Paris?"}
REPORT = '{"sky": "rain", "degrees": 12}'
ANSWER = "It rains in Paris, and it has 12 degrees."
CALL: Json = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
CONVERSATION: list[Json] = [
    SYSTEM,
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": REPORT},
    {"role": "assistant", "content": ANSWER},
]
"""What the taught policy does; the template wants arguments as objects."""


def make_taught(folder: Path, scratch: Path) -> Path:
    """A policy whose greedy answers are those of `CONVERSATION`."""
    corpus = scratch / "corpus.jsonl"
    corpus.write_text(json.dumps({"tools": [WEATHER], "messages": CONVERSATION}) + "\n", encoding="utf-8")
    make_model(folder, corpus, SHAPE, seed=0)
    _teach(folder)
    return folder


def make_random(folder: Path, like: Path, seed: int) -> Path:
    """A random policy with the tokenizer and the shape of another."""
    shutil.copytree(like, folder)
    model = Qwen3(Qwen3Config.load(folder))
    init_weights(model, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(SHARPNESS)
    save_weights(model, folder)
    return folder


def _teach(folder: Path) -> None:
    torch.manual_seed(0)
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(CONVERSATION, tools=[WEATHER], return_tensors="pt", return_dict=True)
    ids = text["input_ids"]
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(MOST_STEPS):
        loss = student(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < TAUGHT_LOSS:
            break
    else:
        raise AssertionError(f"the conversation was not learnt in {MOST_STEPS} steps, the loss is {loss.item():.4f}")
    ours = load_model(folder)
    ours.load_state_dict(student.state_dict())
    save_weights(ours, folder)


@cache
def _reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def hf_logprobs(folder: Path, ids: list[int], n_output: int, temperature: float = 1.0) -> np.ndarray:
    """float32 [n_output]: what transformers' own forward says about the last ``n_output`` of ``ids``."""
    with torch.no_grad():
        logits = _reference(folder)(torch.tensor([ids])).logits[0]
    return _chosen(logits[-n_output - 1 : -1] / temperature, ids[-n_output:])


def hf_logprobs_on_old_keys(old: Path, new: Path, ids: list[int], n_old: int, n_new: int) -> np.ndarray:
    """float32 [n_new]: the same of the last ``n_new`` of ``ids`` under new weights that attend to keys and values of the old ones.

    ``n_old`` tokens are in the cache of the old weights when the new ones compute the rest.
    """
    with torch.no_grad():
        cache = _reference(old)(torch.tensor([ids[:n_old]]), use_cache=True).past_key_values
        logits = _reference(new)(torch.tensor([ids[n_old:]]), past_key_values=cache).logits[0]
    return _chosen(logits[-n_new - 1 : -1], ids[-n_new:])


def _chosen(logits: torch.Tensor, ids: list[int]) -> np.ndarray:
    return logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
