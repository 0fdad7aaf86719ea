"""Owns the JSON of SGLang's ``/generate``: parsing with errors that name the field, and rendering.

Parsed by hand from orjson, not by pydantic, because each call carries the whole conversation as ids (9k and more). Refuses parameters that
would change what is generated and are not implemented, rather than ignoring them.
"""

import random
from typing import Any, cast

import numpy as np
import orjson

from services.common.errors import BadRequest
from services.policy_server.sampling import SamplingParams
from services.policy_server.sequences import GenerateRequest, GenerateResult
from services.policy_server.trunk import Ids

DEFAULT_MAX_NEW_TOKENS = 128
SAMPLING_KEYS = frozenset({"temperature", "top_p", "top_k", "max_new_tokens", "stop_token_ids", "sampling_seed", "ignore_eos"})
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "min_p": (0,),
    "min_new_tokens": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "stop": (None, []),
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
    "stream": (None, False),
    "text": (None,),
    "logprob_start_len": (None, -1),
    "top_logprobs_num": (None, 0),
    "image_data": (None, []),
    "lora_path": (None,),
    "return_hidden_states": (None, False),
    "return_routed_experts": (None, False),
}


def parse_generate(body: bytes) -> tuple[GenerateRequest, bool]:
    """The request, and whether log-probabilities are wanted. Raises BadRequest."""
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
    return GenerateRequest(input_ids=parse_ids(fields.get("input_ids")), sampling=sampling, rid=rid), bool(fields.get("return_logprob"))


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


def render_generate(result: GenerateResult, *, logprobs: bool) -> bytes:
    """The answer as SGLang gives it for a request by ids."""
    meta: dict[str, Any] = {
        "id": result.rid,
        "finish_reason": {"type": result.finish_reason.type, **result.finish_reason.detail},
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.output_ids),
        "cached_tokens": result.cached_tokens,
        "weight_version": result.weight_version,
        "weight_versions": [{"version": span.version, "start": span.start, "end": span.end} for span in result.weight_versions],
        "e2e_latency": result.latency_s,
    }
    if logprobs:
        meta["output_token_logprobs"] = [(p, token, None) for p, token in zip(result.logprobs, result.output_ids, strict=True)]
    return orjson.dumps({"text": "", "output_ids": result.output_ids, "meta_info": meta})
