"""What the proxy's tests share: the model folder, the running proxy and its clients, conversations."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol

import httpx
from fake_sglang import FakeSglang
from fake_store import FakeStore
from openai import AsyncOpenAI, OpenAI
from proxy_servers import ServerThread, wait_until
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.common.config import ExperimentConfig
from services.common.wire.calls import CallRecord, rows_of
from services.policy_proxy.app import create_app
from services.policy_proxy.prompts.rendering import Renderer

Json = dict[str, Any]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "You are a customer service agent. Help the customer, look before you fix.\n# Tools\n<tools>\n</tools>",
    '<tool_call>\n{"name": "look_up", "arguments": {"city": "Paris", "n": 3}}\n</tool_call>',
    "user assistant system tool hello world, the quick brown fox. toggle_airplane_mode check_network_status 0123456789",
]
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') + '\\n\\n# Tools\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content and loop.last %}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{{- (message.content or '') | trim }}
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first else '' }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif not loop.first %}
{{- raise_exception('role ' ~ message.role ~ ' is not supported at this place') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Qwen3 style: it trims what the assistant said, and drops the reasoning of all but the last message."""


def make_model_folder(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<tool_call>", "</tool_call>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tool(name: str = "look_up") -> Json:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": "Looks something up.", "parameters": parameters}}


def call_text(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SYSTEM: Json = {"role": "system", "content": "You are a customer service agent."}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


class MakeProxy(Protocol):
    def __call__(self, *, start: bool = True, **settings: Any) -> "ProxyUnderTest": ...


@contextmanager
def running_proxy(
    model_folder: Path, renderer: Renderer, trial: Path, *, servers: int = 1, gconfig: Json | None = None, **settings: Any
) -> Iterator["ProxyUnderTest"]:
    """Fake servers that run and a proxy to start. ``settings`` are those of services.policy_proxy."""
    with ExitStack() as stack:
        # Where nothing is published the store answers 404, the client's back-off draws a random number, and hypothesis objects to that.
        store = FakeStore(latest={"version": 0, "path": str(model_folder)})
        store_thread = stack.enter_context(ServerThread(store.app))
        engines = [FakeSglang(script=lambda _: [], model_path=str(model_folder)) for _ in range(servers)]
        threads = [stack.enter_context(ServerThread(engine.app)) for engine in engines]
        thread = ServerThread(lambda: create_app(config))
        section = {"port": thread.port, "server_urls": [item.url for item in threads]} | settings
        config = ExperimentConfig.model_validate(
            {
                "cluster": {"fileroot": str(trial)},
                "actor": {"path": str(model_folder)},
                "gconfig": {"max_tokens": 4096} | (gconfig or {}),
                "services": {"trajectory_store": {"port": store_thread.port}, "policy_proxy": section},
            }
        )
        proxy = ProxyUnderTest(config, thread, store, store_thread, engines, threads, renderer)
        proxy.says("ok<|im_end|>")
        stack.callback(proxy.close)
        yield proxy


class ProxyUnderTest:
    """A running proxy with everything around it."""

    def __init__(
        self,
        config: ExperimentConfig,
        thread: ServerThread,
        store: FakeStore,
        store_thread: ServerThread,
        engines: list[FakeSglang],
        engine_threads: list[ServerThread],
        renderer: Renderer,
    ) -> None:
        self.config, self.thread, self.store, self.store_thread = config, thread, store, store_thread
        self.engines, self.engine_threads, self.renderer = engines, engine_threads, renderer
        self.engine = engines[0]
        self.http = httpx.Client(base_url=thread.url, timeout=30)
        self._before: dict[str, float] = {}

    def start(self) -> None:
        self.thread.start()
        self.wait_up(len(self.engines))

    def restart(self) -> None:
        """A new process would know no more than this: memory is gone, the store is not."""
        self.thread.stop()
        self.start()

    def close(self) -> None:
        self._reset_knobs()
        self.http.close()
        for thread in (self.thread, self.store_thread, *self.engine_threads):
            thread.ask_to_stop()
        self.thread.stop()

    def wait_up(self, servers: int, version: int | None = None) -> None:
        def ready() -> bool:
            state = self.state()
            wanted = state["policy_version"] if version is None else version
            return sum(item["state"] == "up" and item["version"] == wanted for item in state["servers"]) == servers

        wait_until(ready, 15, f"{servers} servers up")

    def state(self) -> Json:
        return self.http.get("/v1/admin/state").json()

    def reset(self) -> None:
        """The fakes as new; metrics count from here."""
        self._reset_knobs()
        for engine in self.engines:
            for log in (engine.exchanges, engine.updates, engine.control, engine.control_keys, engine.aborted, engine.plans):
                log.clear()
        self.says("ok<|im_end|>")
        self._before = self._metrics()

    def _reset_knobs(self) -> None:
        loaded = ("version", "model_path")
        knobs = {item.name: item.default for item in fields(FakeSglang) if item.default is not MISSING and item.name not in loaded}
        for engine in self.engines:
            for name, value in knobs.items():
                setattr(engine, name, value)
        self.store.lose_answers, self.store.record_delay_s, self.store.intent_delay_s = 0, 0.0, 0.0

    def metric(self, name: str, **labels: str) -> float:
        """A metric, less what it was at `reset`."""
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        line = f"frontdesk_policy_proxy_{name}" + (f"{{{inner}}}" if inner else "")
        return self._metrics().get(line, 0.0) - self._before.get(line, 0.0)

    def _metrics(self) -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in self.http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def open(self, session_id: str = "") -> "SessionClient":
        session_id = session_id or f"s-{uuid.uuid4().hex[:8]}"
        reply = self.http.post("/v1/sessions", json={"session_id": session_id})
        assert reply.status_code == 200, reply.text
        return SessionClient(self, session_id, reply.json()["api_key"], reply.json()["base_url"])

    def says(self, *texts: str) -> None:
        """What the policy says, call by call; the last text is repeated. Texts without end-of-turn token end by length."""
        outputs = [[int(token) for token in self.renderer._ids(text)] for text in texts]
        for engine in self.engines:
            engine.script = _in_turn(outputs)

    def post_weights(self, version: int, path: str = "/weights/v1", **extra: Any) -> httpx.Response:
        return self.http.post("/v1/admin/weights", json={"version": version, "path": path, **extra})

    def assert_token_exact(self, session: "SessionClient") -> list[CallRecord]:
        """Every call's path in the token tree is what a server got and what it said, with its logprobs."""
        records = session.records
        exchanges = {item.rid: item for engine in self.engines for item in engine.exchanges if item.finish}
        for row, record in zip(rows_of(records), records, strict=True):
            sent = exchanges[f"{record.call_id}.0"].input_ids
            said: list[int] = []
            for number in range(1000):
                exchange = exchanges.get(f"{record.call_id}.{number}")
                if exchange is None:
                    break
                assert exchange.input_ids == sent + said
                said += exchange.output_ids
            assert row.ids.tolist() == sent + said
            assert row.n_output == len(said)
        return records


class SessionClient:
    """A session's key, and clients that use it."""

    def __init__(self, proxy: ProxyUnderTest, session_id: str, api_key: str, base_url: str) -> None:
        self.proxy, self.session_id, self.api_key, self.base_url = proxy, session_id, api_key, base_url

    def openai(self, **kwargs: Any) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.api_key, **kwargs)

    def async_openai(self, **kwargs: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, **kwargs)

    def post(self, messages: list[Json], call_id: str = "", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        sent = {"Authorization": f"Bearer {self.api_key}", **(headers or {})}
        if call_id:
            sent["Idempotency-Key"] = call_id
        path = f"/v1/sessions/{self.session_id}/v1/chat/completions"
        return self.proxy.http.post(path, json={"model": "policy", "messages": messages, **body}, headers=sent)

    def say(self, messages: list[Json], **kwargs: Any) -> Json:
        """One call; the assistant message."""
        reply = self.post(messages, **kwargs)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]

    def demonstrate(self, messages: list[Json], message: Json, tools: list[Json]) -> httpx.Response:
        path = f"/v1/sessions/{self.session_id}/demonstrations"
        return self.proxy.http.post(path, json={"messages": messages, "tools": tools, "message": message})

    def seal(self) -> httpx.Response:
        return self.proxy.http.post(f"/v1/sessions/{self.session_id}/seal", json={})

    @property
    def records(self) -> list[CallRecord]:
        return self.proxy.store.records(self.session_id)


def _in_turn(outputs: list[list[int]]) -> Callable[[list[int]], list[int]]:
    left = list(outputs)

    def script(_: list[int]) -> list[int]:
        return left.pop(0) if len(left) > 1 else left[0]

    return script
