"""What the proxy benchmark sends and gets: a conversation of 16 calls, a tokenizer that fits it, and the replies of the model server.

A request grows from 3.5 to 14 kB, about 9 kB on average, because each call extends the last by the answer it got and a line of the user.
A reply has 128 tokens with ids and logprobs and is 24 kB long in either dialect: OpenAI's as vLLM writes it with ``return_token_ids``,
with 2,000 prompt ids, and SGLang's ``/generate``, with as many prompt ids as make it equally long. Words are random, so nothing has to be
downloaded; they make about five characters a token.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Json = dict[str, Any]
TURNS, OUTPUT_TOKENS, PROMPT_IDS = 16, 128, 2000
REPLY_BYTES = 24_000
SYSTEM_CHARS, USER_CHARS = 3_200, 60
RID = b"RIDRIDRID"
"""Stands in the ``/generate`` reply where the request's id belongs."""
END_OF_TURN = "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", END_OF_TURN]
TEMPLATE = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@dataclass(frozen=True, slots=True)
class Payload:
    """``requests``: the OpenAI bodies of one session in order. ``answer`` is what the model says every time."""

    requests: list[Json]
    answer: str
    chat_reply: bytes
    generate_reply: bytes

    @property
    def request_bytes(self) -> int:
        """Mean length of a request."""
        return sum(len(orjson.dumps(request)) for request in self.requests) // len(self.requests)


def make_payload(folder: Path, seed: int = 0) -> Payload:
    """Writes the model folder (tokenizer and chat template, no weights) and makes everything that goes with it."""
    rng = random.Random(seed)
    words = sorted({"".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 5))) for _ in range(9000)})
    tokenizer = _tokenizer(words)
    _save(tokenizer, folder)

    def text(chars: int) -> str:
        return " ".join(rng.choices(words, k=chars))[:chars].strip()

    ids = [*tokenizer.encode(text(2_000)).ids[: OUTPUT_TOKENS - 1], tokenizer.token_to_id(END_OF_TURN)]
    answer = tokenizer.decode(ids[:-1])
    logprobs = [-round(rng.gammavariate(0.2, 1.0), 12) - 1e-9 for _ in ids]
    chat_reply = _chat_reply(tokenizer, answer, ids, logprobs, [rng.randrange(8_000) for _ in range(PROMPT_IDS)])
    messages: list[Json] = [{"role": "system", "content": text(SYSTEM_CHARS)}]
    requests: list[Json] = []
    for _ in range(TURNS):
        messages = [*messages, {"role": "user", "content": text(USER_CHARS)}]
        requests.append({"model": "policy", "messages": messages, "temperature": 1.0, "max_tokens": OUTPUT_TOKENS})
        messages = [*messages, {"role": "assistant", "content": answer}]
    return Payload(requests, answer, chat_reply, _generate_reply(ids, logprobs, len(chat_reply), rng))


def _tokenizer(words: list[str]) -> Tokenizer:
    """Byte-level BPE in which most of the words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(["", *words])] * 3, trainer)
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(settings))


def _chat_reply(tokenizer: Tokenizer, answer: str, ids: list[int], logprobs: list[float], prompt_ids: list[int]) -> bytes:
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    content = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in zip(tokens, logprobs, strict=True)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer, "refusal": None, "tool_calls": []},
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": ids,
    }
    usage = {"prompt_tokens": len(prompt_ids), "completion_tokens": len(ids), "total_tokens": len(prompt_ids) + len(ids)}
    reply = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice], "usage": usage}
    return _padded(reply, "prompt_token_ids", prompt_ids, REPLY_BYTES)


def _generate_reply(ids: list[int], logprobs: list[float], n_bytes: int, rng: random.Random) -> bytes:
    meta = {
        "id": RID.decode(),
        "finish_reason": {"type": "stop", "matched": ids[-1]},
        "prompt_tokens": PROMPT_IDS,
        "weight_version": "0",
        "total_retractions": 0,
        "completion_tokens": len(ids),
        "cached_tokens": 0,
        "output_token_logprobs": [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)],
        "e2e_latency": 0.001,
    }
    reply = {"text": "", "output_ids": ids, "meta_info": meta}
    return _padded(reply, "prompt_token_ids", [rng.randrange(8_000) for _ in range(PROMPT_IDS)], n_bytes)


def _padded(reply: Json, name: str, ids: list[int], n_bytes: int) -> bytes:
    """``reply`` with so many ids under ``name`` that it is about ``n_bytes`` long; ``ids`` at least."""
    found = list(ids)
    while len(body := orjson.dumps({**reply, name: found})) < n_bytes:
        found += ids[: max((n_bytes - len(body)) // 5, 1)]
    return body
