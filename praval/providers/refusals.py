"""What a refusing server's answer means: the right error, its wish when to come back, no secret."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from praval.errors import (
    OverloadedError,
    ProviderAuthError,
    ProviderStatusError,
    RateLimitError,
)

if TYPE_CHECKING:
    from praval.providers.http import HttpProvider

QUOTED = 300
"""Characters of a server's answer that an error message quotes."""

ADVICE: Mapping[int, str] = {
    401: "Check the API key.",
    403: "Check what the API key may do.",
    404: "Check base_url and the name of the model.",
    429: "Too many requests, or the quota is used up: call less often, or later.",
    529: "The provider is overloaded: call later, or name further providers as fallback.",
}


def refusal(
    provider: HttpProvider, status: int, headers: Mapping[str, str], body: bytes
) -> ProviderStatusError:
    """Return the error for an answer with an error status."""
    message = provider.redacted(error_text(body))
    text = f"{provider.base_url} answered HTTP {status}: {message}"
    if status in ADVICE:
        text = f"{text} {ADVICE[status]}"
    return kind_of(status)(text, status, retry_after(headers))


def kind_of(status: int) -> type[ProviderStatusError]:
    """Return the class of error for a status."""
    if status in (401, 403):
        return ProviderAuthError
    if status == 429:
        return RateLimitError
    return OverloadedError if status >= 500 else ProviderStatusError


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the server wants to be left alone, in any of the usual forms."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < 86_400 else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None:
        return None
    try:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):
        return None


def quoted(text: str, secret: str | None) -> str:
    """Return ``text``, shortened, without the secret."""
    if secret:
        text = text.replace(secret, "***")
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def error_text(body: bytes) -> str:
    """Return what an error answer says, in one of the shapes that servers use."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body.decode(errors="replace").strip() or "(empty answer)"
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("message") or answer.get("detail") or answer
    if isinstance(answer, dict):
        answer = answer.get("message") or answer
    return str(answer)
