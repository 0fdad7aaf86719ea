"""Owns finding a model's chat templates: the places where transformers looks for them, or a file that the config names.

Refuses a model without a default template. What the templates say is `template`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from services.policy_proxy.prompts.template import ChatTemplate

DEFAULT, WITH_TOOLS = "default", "tool_use"
"""The names that transformers chooses by; the second one is for requests with tools, where a model has it."""
FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"

Sources = dict[str, tuple[str, str]]
"""By template name: where it was found, and its text."""


def load_templates(
    folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str], file: str = ""
) -> dict[str, ChatTemplate]:
    """Chat templates by name. ``file`` is used instead of the model's own. Raises ValueError that names what is wrong."""
    sources = _named_file(file) if file else _files(folder) or _entries(folder, tokenizer_config.get("chat_template"))
    if DEFAULT not in sources:
        raise ValueError(f"{folder}: of the chat templates {sorted(sources)} none is named {DEFAULT!r}; set rollout.agent.chat_template")
    return {name: ChatTemplate(text, special_tokens, where) for name, (where, text) in sources.items()}


def _named_file(file: str) -> Sources:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"rollout.agent.chat_template: there is no file {path}")
    return {DEFAULT: (str(path), path.read_text(encoding="utf-8"))}


def _files(folder: Path) -> Sources:
    paths = {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        paths[DEFAULT] = folder / FILE
    return {name: (str(path), path.read_text(encoding="utf-8")) for name, path in paths.items()}


def _entries(folder: Path, value: Any) -> Sources:
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    if value is None:
        raise ValueError(
            f"{folder / FILE} is missing, and tokenizer_config.json has no chat_template either; set rollout.agent.chat_template"
        )
    if isinstance(value, str):
        return {DEFAULT: (where, value)}
    entries = cast("list[Any]", value) if isinstance(value, list) else []
    named = {name: text for name, text in map(_entry, entries) if isinstance(name, str) and isinstance(text, str)}
    if not entries or len(named) != len(entries):
        raise ValueError(f'{where}: a string is needed, or a list of {{"name": …, "template": …}} objects')
    return {name: (f"{where} {name}", text) for name, text in named.items()}


def _entry(value: Any) -> tuple[Any, Any]:
    entry = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return entry.get("name"), entry.get("template")
