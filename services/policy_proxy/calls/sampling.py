"""Owns how tokens are to be sampled: the ``sampling_params`` of an SGLang request.

Refuses nothing: which settings a client may ask for, and which leave captured logprobs true, is decided where its request is read.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

Json = dict[str, Any]

DEFAULTS: Mapping[str, Any] = {
    "stop": (),
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "ignore_eos": False,
}
"""SGLang's own defaults of the parameters that are sent only where they differ."""

GRAMMARS = frozenset({"json_schema", "regex", "ebnf", "structural_tag"})


class Sampling(msgspec.Struct, frozen=True):
    """What goes into ``sampling_params``. ``stop``: strings; generation ends with the token that completes one of them."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_token_id: int
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[str, float] | None = None
    """Token id in decimal -> what is added to its logit."""
    json_schema: str | None = None
    """JSON text; this one and the next three constrain decoding, at most one of them may be given."""
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    ignore_eos: bool = False

    def as_json(self) -> Json:
        """SGLang's ``sampling_params``: the ones always sent, and those that differ from SGLang's defaults."""
        params: Json = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "stop_token_ids": [self.stop_token_id],
            "skip_special_tokens": False,
        }
        for name in self._changed():
            params[name] = getattr(self, name)
        return params if self.seed is None else params | {"sampling_seed": self.seed}

    @property
    def constrained(self) -> bool:
        """Whether a grammar restricts what can be said."""
        return not GRAMMARS.isdisjoint(self._changed())

    def _changed(self) -> list[str]:
        return [name for name, default in DEFAULTS.items() if getattr(self, name) != default]
