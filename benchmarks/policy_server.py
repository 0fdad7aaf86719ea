"""Speed of the policy server's engine on one thread, side by side with a plain transformers loop. One command, no arguments needed:

    python benchmarks/policy_server.py --json result.json

The model is random, with the shape of the laptop configuration. Requests share a prefix, as episodes share tools and policy. Rounds of the
engine and of transformers alternate, because the speed of a shared machine moves; medians are reported, no claim is made from one round.
Each rate is given per second and, as ``…_cpu_s``, per CPU second of this process, which other processes disturb less.
The transformers loop is given every advantage that does not change it: its prefix is computed once and repeated before the clock starts.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.common.config.laptop import PolicyInitConfig
from services.common.nn.qwen3 import Qwen3, Qwen3Config, init_weights, save_weights
from services.policy_server.engine import Engine
from services.policy_server.sampling import SamplingParams
from services.policy_server.sequences import GenerateRequest

TICKETS = 4
TICKET_TOKENS = 100
Figures = dict[str, float]


class Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, name: str, tokens: int) -> Figures:
        """``tokens`` per second so far, both ways."""
        return {
            f"{name}_tok_s": tokens / (time.perf_counter() - self._wall),
            f"{name}_tok_cpu_s": tokens / (time.process_time() - self._cpu),
        }

    def seconds(self) -> float:
        return time.perf_counter() - self._wall


def make_model(folder: Path) -> int:
    """A random policy in ``folder``; returns its number of parameters."""
    init = PolicyInitConfig()
    model = Qwen3(Qwen3Config(**init.model_dump(include=set(Qwen3Config.__dataclass_fields__))))
    init_weights(model, 0, init.qk_norm_gain)
    save_weights(model, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def random_ids(rng: np.random.Generator, n: int) -> list[int]:
    return rng.integers(1, PolicyInitConfig().vocab_size, n).tolist()


def request(ids: list[int], n: int, seed: int) -> GenerateRequest:
    return GenerateRequest(input_ids=ids, sampling=SamplingParams(max_new_tokens=n, ignore_eos=True, seed=seed))


class EngineBench:
    """The engine, with counters read before and after."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine(folder)
        self.engine.start()
        rng = np.random.default_rng(1)
        self.prefix = random_ids(rng, 9000)
        self.tickets = [random_ids(rng, TICKET_TOKENS) for _ in range(TICKETS)]

    def prompt(self, i: int, prefix: int) -> list[int]:
        return self.prefix[:prefix] + self.tickets[i % TICKETS]

    async def prefill(self, batch: int, prefix: int) -> Figures:
        """First arrival of ``batch`` requests at once with an empty cache."""
        self.engine.flush().result()
        before = self.engine.load().totals
        clock = Clock()
        await asyncio.gather(*(self.engine.generate(request(self.prompt(i, prefix), 1, i)) for i in range(batch)))
        computed = self.engine.load().totals.prefill_tokens - before.prefill_tokens
        return {"seconds": clock.seconds(), "computed_tokens": computed, **clock.rate("prefill", computed)}

    async def decode(self, batch: int, prefix: int, n: int) -> Figures:
        """``n`` tokens for each of ``batch`` sequences whose prompts are cached."""
        await asyncio.gather(*(self.engine.generate(request(self.prompt(i, prefix), 1, i)) for i in range(batch)))
        clock = Clock()
        await asyncio.gather(*(self.engine.generate(request(self.prompt(i, prefix), n, i)) for i in range(batch)))
        return clock.rate("decode", batch * n)

    async def sessions(self, count: int, turns: int) -> Figures:
        """``count`` sessions of several turns: 5-15 tokens said, 10-300 tokens of tool result, 10-50 ms between calls."""
        before = self.engine.load().totals
        clock = Clock()
        generated = sum(await asyncio.gather(*(self._session(i, turns) for i in range(count))))
        seconds = clock.seconds()
        after = self.engine.load().totals
        prefill, cached = after.prefill_tokens - before.prefill_tokens, after.cached_tokens - before.cached_tokens
        return {
            "seconds": seconds,
            **clock.rate("generated", generated),
            **clock.rate("prefill", prefill),
            "cache_hit_rate": cached / (after.prompt_tokens - before.prompt_tokens),
            "engine_busy": (after.step_seconds - before.step_seconds) / seconds,
        }

    async def _session(self, seed: int, turns: int) -> int:
        rng = np.random.default_rng(1000 + seed)
        ids, generated = self.prompt(seed, 9000), 0
        for _ in range(turns):
            result = await self.engine.generate(request(ids, int(rng.integers(5, 16)), seed))
            generated += len(result.output_ids)
            ids = ids + result.output_ids + random_ids(rng, int(rng.integers(10, 301)))
            await asyncio.sleep(float(rng.uniform(0.01, 0.05)))
        return generated


class TransformersBench:
    """A plain decode loop of transformers with its key/value cache."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def decode(self, batch: int, context: int, n: int) -> Figures:
        """``n`` tokens for each of ``batch`` sequences behind ``context`` tokens."""
        with torch.inference_mode():
            prompt = torch.randint(1, PolicyInitConfig().vocab_size, (1, context))
            cache = self._model(prompt, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(batch)
            ids = torch.randint(1, PolicyInitConfig().vocab_size, (batch, 1))
            clock = Clock()
            for _ in range(n):
                logits = self._model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
                ids = torch.multinomial(torch.softmax(logits, -1), 1)
            return clock.rate("decode", batch * n)


def measure(folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """All rounds of all cases, engine and transformers in turn."""
    engine, plain = EngineBench(folder), TransformersBench(folder)
    run = asyncio.Runner()
    cases: dict[str, Callable[[], Figures]] = {
        "engine first 64 requests, 9000 shared": lambda: run.run(engine.prefill(64, 9000)),
        "engine decode batch 1, 9000 shared": lambda: run.run(engine.decode(1, 9000, 64)),
        "engine decode batch 8, 9000 shared": lambda: run.run(engine.decode(8, 9000, 64)),
        "engine decode batch 32, 9000 shared": lambda: run.run(engine.decode(32, 9000, 64)),
        "transformers decode batch 32, 9000 context": lambda: plain.decode(32, 9000, 16),
        "engine decode batch 64, 9000 shared": lambda: run.run(engine.decode(64, 9000, 64)),
        "engine decode batch 32, 1500 shared": lambda: run.run(engine.decode(32, 1500, 64)),
        "transformers decode batch 32, 1500 context": lambda: plain.decode(32, 1500, 64),
        "engine 32 sessions of 6 turns": lambda: run.run(engine.sessions(32, 6)),
        "engine 64 sessions of 6 turns": lambda: run.run(engine.sessions(64, 6)),
    }
    results: dict[str, list[Figures]] = {name: [] for name in cases}
    for index in range(rounds):
        for name, case in cases.items():
            results[name].append(case())
            shown = ", ".join(f"{key} {value:.4g}" for key, value in results[name][-1].items())
            print(f"round {index + 1}/{rounds}  {name}: {shown}", file=sys.stderr)
    engine.engine.stop()
    run.close()
    return results


def medians(rounds: list[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        parameters = make_model(Path(name))
        rounds = measure(Path(name), arguments.rounds)
    report = {"parameters": parameters, "threads": 1, "medians": {case: medians(r) for case, r in rounds.items()}, "rounds": rounds}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for case, figures in report["medians"].items():
        print(f"{case:46s}", "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
