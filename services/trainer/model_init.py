"""Owns making the small policy: a tokenizer trained on the domain's text, our chat template, random Qwen3 weights, as one HF folder.

A stand-in for a pretrained model, so that the whole system runs without one. Never overwrites a folder that is complete.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.common.config.laptop import PolicyInitConfig
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, save_weights

log = logging.getLogger(__name__)

END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", END_OF_TURN]
MARKUP_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
"""One token each, as in Qwen3's tokenizer."""

CALL_TOKENS = ['{"name": "', '", "arguments": ']
"""The fixed parts of a tool call. One token each: fewer tokens to sample, so fewer places where a small policy can slip."""

MARKUP = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS + MARKUP_TOKENS + CALL_TOKENS))
"""What BPE never sees: these become tokens by themselves."""

PIECES = r" ?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+(?: [^\s\p{L}\p{N}_]+)*\n*|\s+"
"""How text is cut before BPE: whole identifiers, numbers of up to three digits, runs of punctuation (JSON's ``", "`` is one piece)."""


def make_model(folder: Path, corpus: Path, shape: PolicyInitConfig, seed: int) -> None:
    """Writes the HF folder of policy version 0, atomically. ``corpus``: JSON lines of ``{"tools", "messages"}``."""
    if (folder / "config.json").exists():
        log.info("policy folder %s is there already", folder)
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    template = files("services.trainer").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = train_tokenizer(rendered(corpus, template), shape.vocab_size)
    save_tokenizer(tokenizer, template, partial, shape.max_position_embeddings)
    model = Qwen3(qwen3_config(shape, tokenizer))
    init_weights(model, seed, shape.qk_norm_gain)
    save_weights(model, partial)
    os.replace(partial, folder)
    log.info("made a policy of %d parameters in %s", sum(p.numel() for p in model.parameters()), folder)


def qwen3_config(shape: PolicyInitConfig, tokenizer: Tokenizer) -> Qwen3Config:
    """The architecture of the small policy; the vocabulary is what the tokenizer really has."""
    return Qwen3Config(
        **shape.model_dump(exclude={"vocab_size", "qk_norm_gain"}),
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_id=cast(int, tokenizer.token_to_id(END_OF_TURN)),
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `PIECES`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKUP_TOKENS + CALL_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in MARKUP.split(text)), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP_TOKENS + CALL_TOKENS])
    return tokenizer


def rendered(corpus: Path, template: str) -> Iterator[str]:
    """The conversations of a corpus as the policy will see them. Raises ValueError for a file without any."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    render = environment.from_string(template).render
    empty = True
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            empty = False
            yield render(**json.loads(line), add_generation_prompt=False)
    if empty:
        raise ValueError(f"{corpus}: no conversation in it")


def _tojson(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def save_tokenizer(tokenizer: Tokenizer, template: str, folder: Path, max_length: int) -> None:
    """Writes the tokenizer files that transformers and SGLang read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END_OF_TURN,
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": ["<|im_start|>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    generation = {"eos_token_id": tokenizer.token_to_id(END_OF_TURN), "pad_token_id": tokenizer.token_to_id("<|endoftext|>")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
