"""Owns the one error type that crosses service boundaries, and both of its wire forms.

A `ServiceError` says which status, which machine-readable code, what happened and what to do about it. It renders as RFC 9457
problem JSON, or as the OpenAI error envelope on OpenAI routes. Refuses to hide our own faults: anything else that escapes a
handler is a 500 with the request id and nothing more.
"""

from typing import Any


class ServiceError(Exception):
    """An answer other than success, with everything a caller needs to react.

    ``code`` is stable and machine-readable, ``detail`` names the field and the remedy, ``retry_after_s`` is set where waiting helps.
    """

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra = extra or {}

    def problem(self, request_id: str) -> dict[str, Any]:
        """RFC 9457 problem JSON."""
        body: dict[str, Any] = {
            "type": f"urn:frontdesk:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.param:
            body["param"] = self.param
        return body | self.extra

    def openai(self) -> dict[str, Any]:
        """The OpenAI error envelope."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.detail, "type": kind, "code": self.code, "param": self.param}}

    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}


class BadRequest(ServiceError):
    """The caller sent something that can never work."""

    status, code, title = 400, "bad_request", "Bad request"


class Unauthorized(ServiceError):
    """No key, or one nobody knows."""

    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(ServiceError):
    """A known key that may not do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(ServiceError):
    """The named thing is not here."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(ServiceError):
    """An illegal state transition, such as a call on a sealed session."""

    status, code, title = 409, "conflict", "Conflict"


class TooLarge(ServiceError):
    """The body is over a documented limit."""

    status, code, title = 413, "too_large", "Content too large"


class Busy(ServiceError):
    """No capacity now; `retry_after_s` says when to come back."""

    status, code, title = 429, "busy", "Too many requests"


class UpstreamFailed(ServiceError):
    """A server behind us answered wrongly."""

    status, code, title = 502, "upstream_failed", "Upstream failed"


class Unavailable(ServiceError):
    """A dependency is away and a retry helps."""

    status, code, title = 503, "unavailable", "Unavailable"


class DeadlineExceeded(ServiceError):
    """A server behind us did not answer in time."""

    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class RemoteError(Exception):
    """What a client of another service sees when that service did not answer with success.

    ``status`` is None when no answer came at all (refused, reset, timed out). ``code`` is the remote's own error code.
    """

    def __init__(self, service: str, status: int | None, code: str, detail: str) -> None:
        super().__init__(f"{service}: {status or 'no answer'} {code}: {detail}")
        self.service = service
        self.status = status
        self.code = code
        self.detail = detail

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in (408, 429, 502, 503, 504)
