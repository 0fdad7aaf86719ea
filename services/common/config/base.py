"""Owns the base class of all config sections, and the type of a service's address."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict


def http_url(value: str) -> str:
    """An address as it is given. Raises ValueError where it is none."""
    url = urlsplit(value)
    # `port` raises ValueError where it is no number from 0 to 65535.
    if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:
        raise ValueError("must be an http:// or https:// URL with a host")
    return value


HttpUrl = Annotated[str, AfterValidator(http_url)]
"""Kept as it was written, unlike pydantic's own, which adds a slash."""


class Section(BaseModel):
    """A config section: unknown keys are errors, values are checked, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
