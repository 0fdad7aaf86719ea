"""SGLang's own reading of the requests that it gets: its request classes, its sampling parameters, and the schema gate before them."""

import dataclasses
from functools import cache
from typing import Any

import msgspec
from pydantic import BaseModel, TypeAdapter
from sglang.srt.entrypoints.api_contract import generate_contract_error
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.managers import io_struct
from sglang.srt.sampling.sampling_params import SamplingParams
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Json = dict[str, Any]
GENERATE, CHAT = "/generate", "/v1/chat/completions"
CLASSES: dict[str, Any] = {
    GENERATE: io_struct.GenerateReqInput,
    CHAT: ChatCompletionRequest,
    "/pause_generation": io_struct.PauseGenerationReqInput,
    "/continue_generation": io_struct.ContinueGenerationReqInput,
    "/abort_request": io_struct.AbortReq,
    "/update_weights_from_disk": io_struct.UpdateWeightFromDiskReqInput,
    "/update_weight_version": io_struct.UpdateWeightVersionReqInput,
    "/init_weights_update_group": io_struct.InitWeightsUpdateGroupReqInput,
    "/destroy_weights_update_group": io_struct.DestroyWeightsUpdateGroupReqInput,
    "/begin_weight_update": io_struct.BeginWeightUpdateReqInput,
    "/end_weight_update": io_struct.EndWeightUpdateReqInput,
    "/update_weights_from_distributed": io_struct.UpdateWeightsFromDistributedReqInput,
}
"""Body -> class, as http_server.py declares it."""
VOCAB = 1024
_ADAPTERS: dict[str, TypeAdapter[Any]] = {}


def fields_of(kind: Any) -> set[str]:
    """The names that a class of SGLang's reads."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return set(kind.model_fields)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return set(kind.__struct_fields__)
    return {item.name for item in dataclasses.fields(kind)}


def accepted(path: str, body: Json) -> Any:
    """The body as SGLang's class. Raises where SGLang would refuse it, and where it would silently ignore a part of it."""
    kind = CLASSES[path]
    ignored = body.keys() - fields_of(kind)
    assert not ignored, f"{path}: SGLang ignores {sorted(ignored)}"
    adapter = _ADAPTERS.setdefault(path, TypeAdapter(kind))
    read = adapter.validate_json(msgspec.json.encode(body))
    if path == GENERATE:
        assert (error := generate_contract_error(body)) is None, error
        read.normalize_batch_and_arguments()
        sampled_with(body["sampling_params"])
    elif path == CHAT:
        params = read.to_sampling_params(stop=read.stop or [], model_generation_config={}, tool_call_constraint=None)
        sampled_with(params)
    return read


def sampled_with(params: Json) -> SamplingParams:
    """``sampling_params`` as SGLang's scheduler gets them. Raises where it would refuse them or ignore one."""
    ignored = params.keys() - fields_of(SamplingParams)
    assert not ignored, f"sampling_params: SGLang ignores {sorted(ignored)}"
    read = SamplingParams(**params)
    read.normalize(_tokenizer())
    read.verify(VOCAB)
    return read


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; SGLang counts the tokens of stop strings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
