"""Owns reading a policy from disk. Refuses a folder that is incomplete, of another architecture, or holds numbers that are not finite."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from services.common.nn.qwen3 import Qwen3, load_model


@dataclass(frozen=True, slots=True)
class Weights:
    """The policy that is served. ``version`` is the caller's name for it, ``eos`` ends a generation."""

    model: Qwen3
    eos: frozenset[int]
    version: str
    path: str


def load_weights(folder: Path, version: str) -> Weights:
    """The weights of a Hugging Face folder. Raises ValueError, naming the folder, for whatever makes it unusable."""
    try:
        model = load_model(folder).eval()
        eos = _eos(folder) | {model.config.eos_token_id}
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a complete Hugging Face model folder: {error!r}") from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise ValueError(f"{folder}: weights contain NaN or infinity; the training that wrote them diverged")
    return Weights(model, eos, version, str(folder))


def _eos(folder: Path) -> frozenset[int]:
    """The end tokens that ``generation_config.json`` adds to those of ``config.json``, as SGLang reads it."""
    file = folder / "generation_config.json"
    if not file.exists():
        return frozenset()
    raw = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
    listed: Any = [] if raw.get("eos_token_id") is None else raw["eos_token_id"]
    return frozenset(cast("list[int]", listed if isinstance(listed, list) else [listed]))
