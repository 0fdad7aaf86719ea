"""Owns the prompt of a call: its text by the chat template, its ids as those of the call it extends and the new ones.

Where the session's newest calls are in memory, text and ids go on from there, and a call costs what is new in it; else, and where the
template writes the history anew, they are made from the whole conversation, off the event loop when it is long. Refuses prompts over
the context limit, and demonstrations that the template does not write as a turn of their own.
"""

import asyncio
from collections.abc import Iterable, Sequence

import numpy as np

from services.common.errors import BadRequest
from services.common.wire.calls import CallRecord, Ids
from services.policy_proxy.calls.records import Prompt
from services.policy_proxy.chat import ChatRequest, Demonstration, Json
from services.policy_proxy.prompts.alignment import Conversation, Extension, extend
from services.policy_proxy.prompts.rendering import Renderer
from services.policy_proxy.prompts.template_run import Checkpoint, Rendered
from services.policy_proxy.prompts.texts import BeginningNeeded, Text
from services.policy_proxy.sessions.table import Session
from services.policy_proxy.sessions.tips import Tip, Tips, history_digests

OFF_LOOP_MESSAGES = 64
"""Whole conversations of more messages (over about 1 ms) are written in a thread, so that other calls go on."""


class Prompts:
    """Makes prompts of at most ``context_tokens`` tokens, with what follows them."""

    def __init__(self, renderer: Renderer, context_tokens: int, tips: Tips) -> None:
        self._renderer = renderer
        self._context_tokens = context_tokens
        self._tips = tips

    async def of(self, session: Session, request: ChatRequest) -> Prompt:
        """The prompt of a request in a session."""
        tips = {tip.call_id: tip for tip in self._tips.of(session.session_id)}
        n_messages = len(request.messages)
        histories = history_digests(request.messages, [n_messages, *(tip.n_messages for tip in tips.values())])
        known = [tip for tip in tips.values() if histories.get(tip.n_messages) == tip.history]
        found = self._extend_tip(session, request, known)
        if found is None:
            off_loop = n_messages > OFF_LOOP_MESSAGES
            found = await asyncio.to_thread(self._extend, session, request) if off_loop else self._extend(session, request)
        rendered, extension = found
        parent = None if extension.parent is None else extension.parent.call_id
        before = tips[parent].ids if parent in tips else session.sequence(parent)
        new_ids = await self._renderer.encode(extension.new_text)
        ids = np.concatenate([before, new_ids])
        return Prompt(rendered.text, parent, new_ids, ids, histories[n_messages], rendered.checkpoint)

    def keep(self, prompt: Prompt, record: CallRecord, n_messages: int) -> None:
        """Remembers a recorded call for those that will extend it."""
        if record.parent != prompt.parent or record.prompt != prompt.new_ids.tobytes():
            # The store had this call already, made from another prompt.
            return
        ids: Ids = np.concatenate([prompt.ids, record.output_ids()])
        tip = Tip(record.call_id, n_messages, prompt.history, prompt.checkpoint, ids)
        self._tips.put(record.session_id, tip, prompt.parent)

    def room(self, prompt: Prompt, needed: int) -> int:
        """Tokens that may follow the prompt. Raises `BadRequest` where they are fewer than ``needed``."""
        room = self._context_tokens - len(prompt.ids)
        if room < needed:
            raise BadRequest(
                f"messages: the prompt has {len(prompt.ids)} tokens and needs {needed} more, the context limit is {self._context_tokens}",
                code="context_length_exceeded",
                param="messages",
            )
        return room

    def spoken_text(self, prompt: Prompt, shown: Demonstration) -> str:
        """What the policy would have had to say after ``prompt``, end-of-turn included. Raises `BadRequest`."""
        messages = [*shown.request.messages, shown.template_message]
        whole = self._write(shown.request, messages, prompt.checkpoint, add_generation_prompt=False)
        spoken, end_of_turn, _ = (whole.text.after_text(prompt.text) or "").rpartition(self._renderer.end_of_turn)
        if not end_of_turn:
            raise BadRequest("message: the chat template does not write it as a turn after its own generation prompt", param="message")
        return spoken + end_of_turn

    def _extend_tip(self, session: Session, request: ChatRequest, known: Iterable[Tip]) -> "_Found | None":
        """The prompt written from the latest of these tips on; None where that does not do."""
        bases = [tip.checkpoint for tip in known if tip.checkpoint is not None]
        if not bases:
            return None
        rendered = self._go_on(request, request.messages, max(bases, key=lambda base: base.n_messages), add_generation_prompt=True)
        try:
            return None if rendered is None else (rendered, self._aligned(session, request, rendered))
        except BeginningNeeded:
            return None

    def _extend(self, session: Session, request: ChatRequest) -> "_Found":
        rendered = self._write(request, request.messages, None, add_generation_prompt=True)
        return rendered, self._aligned(session, request, rendered)

    def _aligned(self, session: Session, request: ChatRequest, rendered: Rendered) -> Extension:
        def render_first(n: int) -> Text:
            base = rendered.checkpoint
            reaches = base is not None and base.n_messages <= n
            return self._write(request, request.messages[:n], base if reaches else None, add_generation_prompt=False).text

        conversation = Conversation(rendered.text, request.messages, render_first, self._renderer.end_of_turn)
        return extend(conversation, list(session.calls.values()))

    def _write(self, request: ChatRequest, messages: Sequence[Json], base: Checkpoint | None, *, add_generation_prompt: bool) -> Rendered:
        """A conversation, from ``base`` on where that holds."""
        rendered = self._go_on(request, messages, base, add_generation_prompt=add_generation_prompt) if base is not None else None
        if rendered is not None:
            return rendered
        template, tools = self._renderer.template(request.tools), request.tools
        return template.begin(messages, tools, add_generation_prompt=add_generation_prompt, extra=request.template_kwargs)

    def _go_on(self, request: ChatRequest, messages: Sequence[Json], base: Checkpoint, *, add_generation_prompt: bool) -> Rendered | None:
        template, tools = self._renderer.template(request.tools), request.tools
        return template.go_on(base, messages, tools, add_generation_prompt=add_generation_prompt, extra=request.template_kwargs)


_Found = tuple[Rendered, Extension]
