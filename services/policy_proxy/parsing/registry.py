"""Owns the names of the parsers: those of SGLang's tables, so that a config written for AReaL or SGLang means the same here.

Names that SGLang has and this package has not are read by SGLang's own code where it is installed (`sglang_parsers`). Refuses all others.
"""

from collections.abc import Mapping

from services.policy_proxy.parsing import sglang_parsers
from services.policy_proxy.parsing.calling import ToolCallFormat
from services.policy_proxy.parsing.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from services.policy_proxy.parsing.formats.kimi_k2 import KIMI_K2
from services.policy_proxy.parsing.formats.kimi_k2 import OPEN as KIMI_K2_OPEN
from services.policy_proxy.parsing.formats.llama3 import LLAMA3
from services.policy_proxy.parsing.formats.mistral import MISTRAL
from services.policy_proxy.parsing.formats.qwen3_coder import QWEN3_CODER
from services.policy_proxy.parsing.formats.tagged_json import HERMES, QWEN25
from services.policy_proxy.parsing.formats.tagged_json import OPEN as TOOL_CALL_OPEN
from services.policy_proxy.parsing.thinking import Thinking

FORMATS: Mapping[str, ToolCallFormat] = {
    "deepseekv3": DEEPSEEK_V3,
    "deepseekv31": DEEPSEEK_V31,
    "hermes": HERMES,
    "kimi_k2": KIMI_K2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "nanbeige": QWEN3_CODER,
    "qwen": QWEN25,
    "qwen25": QWEN25,
    "qwen3_coder": QWEN3_CODER,
    "step3p5": QWEN3_CODER,
}
TOOL_CALL_PARSERS = frozenset(FORMATS)

_QWEN3 = Thinking(call_tag=TOOL_CALL_OPEN)
_ALWAYS = Thinking(always=True)
THINKING: Mapping[str, Thinking | None] = {
    "": None,
    "deepseek-r1": _ALWAYS,
    "deepseek-v3": _QWEN3,
    "deepseek-v4": Thinking(),
    "deepseek-v41": Thinking(),
    "dots": _QWEN3,
    "gigachat35": _ALWAYS,
    "glm45": _QWEN3,
    "interns1": _QWEN3,
    "kimi": Thinking("◁think▷", "◁/think▷"),
    "kimi_k2": Thinking(call_tag=KIMI_K2_OPEN),
    "mimo": _QWEN3,
    "minimax": Thinking(call_tag=TOOL_CALL_OPEN, always=True),
    "mistral": Thinking("[THINK]", "[/THINK]"),
    "nanbeige": _QWEN3,
    "nemotron_3": _QWEN3,
    "poolside_v1": _QWEN3,
    "qwen3": _QWEN3,
    "qwen3-thinking": Thinking(call_tag=TOOL_CALL_OPEN, always=True),
    "step3": _ALWAYS,
    "step3p5": _ALWAYS,
}
REASONING_PARSERS = frozenset(THINKING)


def check_parsers(*, tool_call_parser: str, reasoning_parser: str) -> None:
    """Makes sure that both names can be read with. Raises ValueError that names the config key and the names that are known.

    A name that only SGLang knows makes this import sglang, which takes seconds.
    """
    for key, name, ours, theirs in (
        ("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS, sglang_parsers.tool_call_parsers),
        ("reasoning_parser", reasoning_parser, REASONING_PARSERS, sglang_parsers.reasoning_parsers),
    ):
        if name in ours:
            continue
        try:
            also = theirs()
        except ImportError as error:
            remedy = f"install sglang beside the proxy to use others of its parsers (its import failed: {error})"
            raise ValueError(f"rollout.agent.{key}: {name!r} is not one of {_listed(ours)}; {remedy}") from error
        if name not in also:
            raise ValueError(f"rollout.agent.{key}: {name!r} is not one of {_listed(ours | also)}")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
