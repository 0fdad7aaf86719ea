"""The small policy that is made at set-up, read back by transformers."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.common.config.laptop import PolicyInitConfig
from services.trainer.model_init import make_model, rendered

SHAPE = PolicyInitConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    head_dim=16,
    max_position_embeddings=512,
)
TOOLS = [
    {"type": "function", "function": {"name": "reboot", "description": "Reboots.", "parameters": {"type": "object", "properties": {}}}}
]
CALL = {"id": "c1", "type": "function", "function": {"name": "reboot", "arguments": '{"hard": true}'}}
MESSAGES = [
    {"role": "system", "content": "Follow the policy. Ünï."},
    {"role": "user", "content": "No data."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rebooted"},
    {"role": "assistant", "content": "Done."},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text(json.dumps({"tools": TOOLS, "messages": MESSAGES}) + "\n")
    return file


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    make_model(folder, corpus, SHAPE, seed=1)
    return folder


def test_transformers_loads_tokenizer_and_model(folder: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>" and model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_chat_template_renders_the_same_through_transformers(folder: Path, corpus: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, tokenize=False)
    template = (folder / "chat_template.jinja").read_text()
    assert text == next(rendered(corpus, template))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_longer_conversation_renders_to_a_longer_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(
            MESSAGES[:n], tools=TOOLS, tokenize=False, add_generation_prompt=MESSAGES[n - 1]["role"] != "assistant"
        )
        for n in range(2, 6)
    ]
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


def test_making_it_again_changes_nothing(folder: Path, corpus: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    make_model(folder, corpus, SHAPE, seed=2)
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no conversation"):
        make_model(tmp_path / "model", tmp_path / "empty.jsonl", SHAPE, seed=1)


@pytest.mark.slow
def test_the_init_command_makes_the_model_of_the_config(corpus: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"cluster": {"fileroot": str(tmp_path)}, "trial_name": "t", "policy_init": SHAPE.model_dump()}))
    command = [sys.executable, "-m", "services.trainer", "init", "--config", str(config), "--corpus"]
    subprocess.run([*command, str(corpus)], check=True, timeout=100)
    assert (tmp_path / "frontdesk" / "t" / "model_init" / "config.json").exists()
