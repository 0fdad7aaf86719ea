"""Owns reading what SGLang generated: whole ``/generate`` answers, and streamed ones event by event.

Turns them into plain values and refuses what cannot be trained on: missing logprobs, ids that disagree, versions that do not cover the
output, tokens of older weights than those the request was pinned to. Every refusal is a `RemoteError`.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import orjson

from services.common.errors import RemoteError
from services.policy_proxy.servers.versions import version_of

Json = dict[str, Any]
Top = list[tuple[float, int]]
"""The likeliest tokens at one position: (logprob, token id), likeliest first."""
SERVICE = "policy_server"
STALE = "stale_weights"
"""The code of an answer made by older weights than the server was known to have."""
UNFIT = frozenset({"NaN happened"})
"""What SGLang gives as the matched stop of an answer that it cut because the logits were not numbers."""


class Piece(msgspec.Struct, frozen=True):
    """Tokens as they come. ``top``: one entry a token where top logprobs were asked for, else None."""

    ids: list[int]
    logprobs: list[float]
    top: list[Top] | None = None


Listener = Callable[[Piece], None]
"""Gets every generated token exactly once and in order, across aborts, resubmissions and other servers."""


class Segment(msgspec.Struct, frozen=True):
    """What one request generated. ``versions``: run-length (policy version, tokens); ``finish``: stop, length or abort."""

    ids: list[int]
    logprobs: list[float]
    versions: list[tuple[int, int]]
    finish: str
    top: list[Top] | None = None
    cached_tokens: int = 0
    matched_stop: str | int | None = None


class Answer(msgspec.Struct, frozen=True):
    """What is read of a ``/generate`` answer. The rest, which may be the ids of a long prompt, is skipped and not parsed."""

    meta_info: Json
    output_ids: list[int] | None = None


_answers = msgspec.json.Decoder(Answer)


class SegmentReader:
    """Puts the events of one streamed request together.

    By default SGLang's events are cumulative: each has all logprobs so far. A server started with ``--incremental-streaming-output``
    sends only the new ones. ``completion_tokens`` tells which: cumulative events have as many entries as that says.
    """

    def __init__(self, pinned: int, n_top: int = 0, *, mixed: Callable[[], bool] | None = None) -> None:
        self._pinned = pinned
        self._mixed = mixed
        self._known = Piece([], [], [] if n_top else None)
        self._label_moved = False
        self.finished: Segment | None = None

    def take(self, event: Json) -> Piece | None:
        """The new tokens of an event, None where it has none. Raises `RemoteError`; nothing of that event may be used then."""
        if "error" in event:
            raise _reported(event["error"])
        try:
            return self._take(event["meta_info"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise bad_answer(f"generate: {error!r} in a streamed event") from error

    def salvaged(self) -> Segment | None:
        """What a server that died had said, to go on from elsewhere; None where the versions of the tokens cannot be known.

        A server puts its new label on before it generates under new weights, so tokens seen under the old label are of the old weights.
        The versions of an output that lived through an update are in its last event only, and that never came.
        """
        if self._label_moved:
            return None
        known = self._known
        versions = [(self._pinned, len(known.ids))] if known.ids else []
        return Segment(known.ids, known.logprobs, versions, "abort", known.top)

    @property
    def n_tokens(self) -> int:
        """Tokens taken so far."""
        return len(self._known.ids)

    def _take(self, meta: Json) -> Piece | None:
        self._check_label(meta)
        known = self._known
        new = self._news(read_tokens(meta, with_top=known.top is not None), int(meta.get("completion_tokens", 0)))
        if meta.get("finish_reason") is not None:
            self.finished = self._end(new, meta)
        known.ids.extend(new.ids)
        known.logprobs.extend(new.logprobs)
        if known.top is not None:
            known.top.extend(new.top or ())
        return new if new.ids else None

    def _end(self, new: Piece, meta: Json) -> Segment:
        known = self._known
        mixed = self._mixed is not None and self._mixed()
        top = None if known.top is None else [*known.top, *(new.top or ())]
        segment = _segment(Piece([*known.ids, *new.ids], [*known.logprobs, *new.logprobs], top), meta, self._pinned, mixed=mixed)
        # Where the end says otherwise than the events did, what was heard has no known version.
        self._label_moved |= any(version != self._pinned for version, _ in segment.versions)
        return refuse_stale(segment, self._pinned)

    def _check_label(self, meta: Json) -> None:
        label = meta.get("weight_version")
        if label is None or (version := version_of(label)) == self._pinned:
            return
        if version < self._pinned and not meta.get("weight_versions"):
            raise stale(f"a streamed event labelled {label!r}, not {self._pinned}")
        self._label_moved = True

    def _news(self, given: Piece, completion_tokens: int) -> Piece:
        have, n = len(self._known.ids), len(given.ids)
        if n >= completion_tokens:
            if n < have or given.ids[:have][-1:] != self._known.ids[-1:]:
                raise ValueError(f"cumulative events disagree: {n} tokens after {have}")
            return Piece(given.ids[have:], given.logprobs[have:], None if given.top is None else given.top[have:])
        if have + n != completion_tokens:
            raise ValueError(f"{n} new tokens after {have} are not the {completion_tokens} that completion_tokens says")
        return given


def read_object(body: bytes) -> Json:
    """Raises `RemoteError` for a body that is no JSON object."""
    try:
        answer: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_answer(f"not JSON: {body[:200]!r}") from error
    if not isinstance(answer, dict):
        raise bad_answer(f"not a JSON object: {body[:200]!r}")
    return cast("Json", answer)


def read_answer(body: bytes) -> Answer:
    """Raises `RemoteError` for a body that is no ``/generate`` answer."""
    try:
        return _answers.decode(body)
    except msgspec.MsgspecError as error:
        raise bad_answer(f"generate: {error} in {body[:200]!r}") from error


def read_segment(answer: Answer, pinned: int, n_top: int = 0, *, mixed: bool = False) -> Segment:
    """The tokens of a ``/generate`` answer. Raises `RemoteError` where they cannot be trusted.

    ``mixed``: updates let running requests go on, so that one output may be of several versions.
    """
    try:
        tokens = read_tokens(answer.meta_info, with_top=n_top > 0)
        segment = _segment(tokens, answer.meta_info, pinned, mixed=mixed)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise bad_answer(f"generate: {error!r}") from error
    if answer.output_ids is not None and answer.output_ids != segment.ids:
        raise bad_answer(f"generate: {len(segment.ids)} logprobs for other ids than the {len(answer.output_ids)} in output_ids")
    return segment


def read_tokens(meta: Json, *, with_top: bool) -> Piece:
    """Ids and logprobs of ``output_token_logprobs``, and of ``output_top_logprobs`` where they were asked for."""
    entries: list[Any] = meta.get("output_token_logprobs") or []
    columns: list[tuple[Any, ...]] = list(zip(*entries, strict=True)) or [(), ()]
    logprobs, ids = list(map(float, columns[0])), list(map(int, columns[1]))
    if not with_top:
        return Piece(ids, logprobs)
    listed: list[Any] = meta.get("output_top_logprobs") or []
    if len(listed) != len(ids):
        raise ValueError(f"output_top_logprobs: {len(listed)} entries for {len(ids)} tokens")
    return Piece(ids, logprobs, [[(float(item[0]), int(item[1])) for item in entry or ()] for entry in listed])


def read_versions(meta: Json, n_output: int, pinned: int, *, aborted: bool, mixed: bool = False) -> list[tuple[int, int]]:
    """Run-length versions of an output: the server's own spans, else its label, else the version pinned before the request left.

    Without spans an aborted output is from before the update that aborted it, while the label is already the new one; and where running
    requests outlive updates (``mixed``), a label that has moved on says nothing about the first tokens, which is a ValueError.
    """
    if n_output == 0:
        return []
    spans = meta.get("weight_versions")
    if not spans:
        label = meta.get("weight_version")
        if mixed and label is not None and version_of(label) != pinned:
            raise ValueError(f"no weight_versions although the label moved from {pinned} to {label!r} meanwhile; update in mode abort")
        return [(pinned if aborted or label is None else version_of(label), n_output)]
    runs: list[tuple[int, int]] = []
    at = 0
    for span in spans:
        end = min(int(span["end"]), n_output)
        if int(span["start"]) != at:
            raise ValueError(f"weight_versions: a span starts at {span['start']}, the one before ends at {at}")
        if end > at:
            runs.append((version_of(span["version"]), end - at))
        at = max(at, end)
    if at != n_output:
        raise ValueError(f"weight_versions: they cover {at} of {n_output} tokens")
    return runs


def refuse_stale(segment: Segment, pinned: int) -> Segment:
    """The segment. Raises `RemoteError` with code `STALE` where a token is of older weights, or of weights that no version names."""
    if any(version < pinned for version, _ in segment.versions):
        raise stale(f"tokens of versions {[version for version, _ in segment.versions]}, not {pinned}")
    return segment


def stale(detail: str) -> RemoteError:
    """A server answered with older weights than it was known to have: it was restarted."""
    return RemoteError(SERVICE, 200, STALE, detail)


def bad_answer(detail: str) -> RemoteError:
    """A server answered what cannot be an answer."""
    return RemoteError(SERVICE, 200, "bad_answer", detail)


def _segment(tokens: Piece, meta: Json, pinned: int, *, mixed: bool) -> Segment:
    reason: Json = meta["finish_reason"]
    finish = str(reason["type"])
    if finish == "abort" and isinstance(status := reason.get("status_code"), int):
        raise RemoteError(SERVICE, status, str(reason.get("err_type") or "aborted"), str(reason.get("message", "")))
    matched = reason.get("matched")
    if finish not in ("stop", "length", "abort") or (isinstance(matched, str) and matched in UNFIT):
        raise ValueError(f"finish_reason {reason!r}")
    versions = read_versions(meta, len(tokens.ids), pinned, aborted=finish == "abort", mixed=mixed)
    cached = int(meta.get("cached_tokens") or 0)
    return Segment(tokens.ids, tokens.logprobs, versions, finish, tokens.top, cached, _matched_stop(matched))


def _matched_stop(matched: Any) -> str | int | None:
    if isinstance(matched, list):
        several = cast("Sequence[Any]", matched)
        matched = several[-1] if several else None
    return matched if isinstance(matched, str | int) else None


def _reported(error: Any) -> RemoteError:
    fields = cast("Json", error) if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return RemoteError(SERVICE, status, str(fields.get("type", "error")), str(fields.get("message", "")))
