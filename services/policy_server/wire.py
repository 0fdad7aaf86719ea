"""Owns the JSON of SGLang's ``/generate`` and of its load figures: parsing with errors that name the field, and rendering.

Parsed by hand from orjson, not by pydantic, because each call carries the whole conversation as ids (9k and more). Refuses parameters that
would change what is generated and are not implemented, rather than ignoring them.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import orjson

from services.common.errors import BadRequest
from services.policy_server.engine import Load
from services.policy_server.sampling import SamplingParams
from services.policy_server.sequences import GenerateRequest, GenerateResult
from services.policy_server.settings import EngineSettings
from services.policy_server.trunk import Ids

DEFAULT_MAX_NEW_TOKENS = 128
SAMPLING_KEYS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "max_new_tokens", "stop", "stop_token_ids", "sampling_seed", "ignore_eos"}
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "min_new_tokens": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "stop_regex": (None, []),
    "json_schema": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "structural_tag": (None,),
    "logit_bias": (None, {}),
    "custom_params": (None, {}),
}
"""SGLang parameters that this engine takes only at the value that does nothing."""
TEXT_ONLY = frozenset({"skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stream_interval"})
"""Parameters about text, which this engine does not make."""
REQUEST_KEYS: dict[str, tuple[Any, ...]] = {
    "text": (None,),
    "logprob_start_len": (None, -1),
    "top_logprobs_num": (None, 0),
    "image_data": (None, []),
    "lora_path": (None,),
    "return_hidden_states": (None, False),
    "return_routed_experts": (None, False),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the answer is to be given."""

    logprobs: bool
    stream: bool


def parse_generate(body: bytes) -> tuple[GenerateRequest, Wanted]:
    """The request, and how it is to be answered. Raises BadRequest."""
    try:
        raw: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"body: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BadRequest("body: send a JSON object")
    fields = cast("dict[str, Any]", raw)
    refuse_effective(fields, REQUEST_KEYS)
    rid = fields.get("rid")
    if rid is not None and not isinstance(rid, str):
        raise BadRequest("rid: send a string", param="rid")
    sampling = parse_sampling(fields.get("sampling_params") or {})
    wanted = Wanted(logprobs=bool(fields.get("return_logprob")), stream=bool(fields.get("stream")))
    return GenerateRequest(input_ids=parse_ids(fields.get("input_ids")), sampling=sampling, rid=rid), wanted


def parse_ids(value: Any) -> Ids:
    """Token ids as an array."""
    try:
        ids = np.array(value if isinstance(value, list) else [], np.int64)
    except (ValueError, TypeError, OverflowError):
        ids = np.empty((0, 0))
    if ids.ndim != 1 or not len(ids) or ids.dtype != np.int64 or ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise BadRequest("input_ids: send one non-empty list of token ids (text and batches are not served here)", param="input_ids")
    return ids.astype(np.int32)


def parse_sampling(raw: Any) -> SamplingParams:
    """``sampling_params`` with SGLang's defaults."""
    if not isinstance(raw, dict):
        raise BadRequest("sampling_params: send one object", param="sampling_params")
    fields = cast("dict[str, Any]", raw)
    unknown = fields.keys() - SAMPLING_KEYS - NEUTRAL.keys() - TEXT_ONLY
    if unknown:
        raise BadRequest(f"sampling_params.{min(unknown)}: unknown parameter", param=f"sampling_params.{min(unknown)}")
    refuse_effective(fields, NEUTRAL, "sampling_params.")
    top_k = integer(fields, "top_k", -1, -1)
    return SamplingParams(
        temperature=number(fields, "temperature", 1.0, 0.0, 100.0),
        top_p=number(fields, "top_p", 1.0, 1e-6, 1.0),
        top_k=-1 if top_k == 0 else top_k,
        min_p=number(fields, "min_p", 0.0, 0.0, 1.0),
        stop=stop_strings(fields.get("stop")),
        max_new_tokens=integer(fields, "max_new_tokens", DEFAULT_MAX_NEW_TOKENS, 1),
        stop_token_ids=stop_ids(fields.get("stop_token_ids")),
        seed=integer(fields, "sampling_seed", random.getrandbits(62), -(1 << 63)),
        ignore_eos=bool(fields.get("ignore_eos")),
    )


def refuse_effective(fields: dict[str, Any], neutral: dict[str, tuple[Any, ...]], prefix: str = "") -> None:
    """Raises BadRequest for a known parameter with a value that would change the answer."""
    for key in fields.keys() & neutral.keys():
        if fields[key] not in neutral[key]:
            raise BadRequest(f"{prefix}{key}: not implemented by this stand-in engine; leave it out or use SGLang", param=prefix + key)


def number(fields: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    """A number of ``fields`` within bounds."""
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"sampling_params.{key}: expected a number in {low:g}..{high:g}, got {value!r}", param=f"sampling_params.{key}")
    return float(value)


def integer(fields: dict[str, Any], key: str, default: int, low: int) -> int:
    """An integer of ``fields`` from ``low`` on."""
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise BadRequest(f"sampling_params.{key}: expected an integer of at least {low}, got {value!r}", param=f"sampling_params.{key}")
    return value


def stop_ids(value: Any) -> frozenset[int]:
    """``stop_token_ids``."""
    listed = cast("list[Any]", value) if isinstance(value, list) else None
    if value is not None and (listed is None or not all(type(item) is int for item in listed)):
        raise BadRequest("sampling_params.stop_token_ids: send a list of token ids", param="sampling_params.stop_token_ids")
    return frozenset(listed or ())


def stop_strings(value: Any) -> tuple[str, ...]:
    """``stop``: one string or several."""
    listed: Any = [value] if isinstance(value, str) else value or []
    strings = [item for item in cast("list[Any]", listed) if isinstance(item, str) and item] if isinstance(listed, list) else []
    if not isinstance(listed, list) or len(strings) != len(cast("list[Any]", listed)):
        raise BadRequest("sampling_params.stop: send a string or a list of strings", param="sampling_params.stop")
    return tuple(strings)


def render_event(result: GenerateResult, *, logprobs: bool) -> bytes:
    """One event of a streamed answer: all there is so far, as SGLang does by default."""
    return b"data: " + render_generate(result, logprobs=logprobs) + b"\n\n"


def render_loads(load: Load, settings: EngineSettings) -> dict[str, Any]:
    """``GET /v1/loads``: the core figures of the only rank."""
    capacity = settings.kv_slots * settings.max_tail_tokens + settings.max_trunk_tokens
    figures = {
        "dp_rank": 0,
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_used_tokens": load.kv_tokens,
        "max_total_num_tokens": capacity,
        "max_running_requests": settings.max_running_requests,
        # What is kept for reuse gives way to what runs, so the cache being full says nothing: the slots in use do.
        "token_usage": load.running / settings.kv_slots,
    }
    return {"timestamp": datetime.now(UTC).isoformat(), "loads": [figures]}


def render_generate(result: GenerateResult, *, logprobs: bool) -> bytes:
    """The answer as SGLang gives it for a request by ids; versions token by token are in the last event of a stream only."""
    reason = result.finish_reason
    meta: dict[str, Any] = {
        "id": result.rid,
        "finish_reason": reason and {"type": reason.type, **reason.detail},
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.output_ids),
        "cached_tokens": result.cached_tokens,
        "weight_version": result.weight_version,
        "e2e_latency": result.latency_s,
    }
    if reason is not None:
        meta["weight_versions"] = [{"version": span.version, "start": span.start, "end": span.end} for span in result.weight_versions]
    if logprobs:
        meta["output_token_logprobs"] = [(p, token, None) for p, token in zip(result.logprobs, result.output_ids, strict=True)]
    return orjson.dumps({"text": "", "output_ids": result.output_ids, "meta_info": meta})
