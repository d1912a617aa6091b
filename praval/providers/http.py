"""What providers that speak HTTP share: one client per loop, one TLS context, clear errors.

A key given to a provider leaves it only in the Authorization header: it is in no message, repr or
log, redirects are not followed, and what a server answers is searched for it before it is quoted.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import ssl
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from praval.errors import ConfigurationError, ProviderError, ProviderTimeoutError
from praval.providers.base import BaseProvider

if TYPE_CHECKING:
    import httpx

QUOTED = 300
"""Characters of a server's answer that an error message quotes."""

ADVICE: Mapping[int, str] = {
    401: "Check the API key.",
    403: "Check what the API key may do.",
    404: "Check base_url and the name of the model.",
    429: "Too many requests, or the quota is used up: call less often, or later.",
}

_tls_lock = threading.Lock()


@functools.cache
def _tls_context() -> ssl.SSLContext:
    import anyio
    import httpcore  # noqa: F401 - or the first request imports it on the loop: 0.1 s
    import httpx

    anyio.run(anyio.sleep, 0)  # as above: loads what anyio needs under asyncio

    return httpx.create_ssl_context()


def tls_context() -> ssl.SSLContext:
    """Return the TLS context that all providers share (slow when first made: not on a loop).

    Raises:
        ConfigurationError: httpx is not installed.
    """
    try:
        with _tls_lock:
            return _tls_context()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Models over HTTP need the package {error.name!r}, which is not installed. "
            'Install it with: pip install "praval-asyncio[providers]"'
        ) from error


class HttpProvider(BaseProvider):
    """Base of providers that speak JSON over HTTP.

    Raises:
        ConfigurationError: ``base_url`` or ``api_key`` cannot be used, or the key would travel
            unencrypted to another host (``allow_plaintext=True`` permits that).
    """

    takes_timeout: ClassVar[bool] = True

    def __init__(
        self, base_url: str, api_key: str | None = None, *, allow_plaintext: bool = False
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._api_key = _checked_key(api_key)
        self._client: httpx.AsyncClient | None = None
        self._client_loop: asyncio.AbstractEventLoop | None = None
        if self._api_key and not allow_plaintext and _is_plaintext_to_others(self.base_url):
            raise ConfigurationError(
                f"The API key for {self.base_url} would travel unencrypted: use https, or "
                "allow_plaintext=True in a network you trust."
            )

    async def post(self, path: str, body: Mapping[str, Any], timeout: float | None) -> bytes:
        """Send ``body`` as JSON and return the body of the answer; ``timeout`` in seconds.

        Raises:
            ProviderError: no connection, no HTTP, or a status other than 200.
            ProviderTimeoutError: no complete answer in time.
            ConfigurationError: the body cannot be written as JSON.
        """
        try:
            content = msgspec.json.encode(body)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"The options of a model call must be JSON: {error}") from None
        client = await self._open()
        import httpx  # _open() imported it in a thread, or said that it is missing

        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                response = await client.post(self.base_url + path, content=content)
        except TimeoutError:
            if not scope.expired():
                raise
            raise ProviderTimeoutError(
                f"{self.base_url} did not answer within {timeout} s. Allow more with timeout=, "
                "or PRAVAL_REQUEST_TIMEOUT."
            ) from None
        except httpx.HTTPError as error:
            reason = self.redacted(str(error)) or "no reason given"
            raise ProviderError(
                f"The request to {self.base_url} failed: {type(error).__name__}: {reason}. "
                "Is the server running, and base_url right?"
            ) from error
        if response.status_code != 200:
            raise ProviderError(self.explained(response.status_code, response.content))
        return response.content

    def explained(self, status: int, body: bytes) -> str:
        """Return the message for an answer with an error status."""
        message = self.redacted(_error_text(body))
        text = f"{self.base_url} answered HTTP {status}: {message}"
        return f"{text} {ADVICE[status]}" if status in ADVICE else text

    def redacted(self, text: str) -> str:
        """Return ``text``, shortened, without the API key."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text if len(text) <= QUOTED else text[:QUOTED] + "..."

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _open(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._client_loop is loop:
            return self._client
        context = await asyncio.to_thread(tls_context)
        if self._client is None or self._client_loop is not loop:  # nobody was faster
            import httpx

            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            # no time-outs of its own: the one above covers the whole request
            self._client = httpx.AsyncClient(
                headers=headers, timeout=None, **self._client_options(context)
            )
            self._client_loop = loop
        return self._client

    def _client_options(self, context: ssl.SSLContext) -> dict[str, Any]:
        import httpx

        # many servers close idle connections after 5 s: ours are given up before, or a request
        # could be sent into one that is just being closed
        limits = httpx.Limits(
            max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0
        )
        return {"verify": context, "limits": limits}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"


def _checked_url(url: object) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url must be a string, not {type(url).__name__}.")
    try:
        parts = urlsplit(url.strip())
        usable = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        usable, parts = False, urlsplit("")
    if not usable or parts.username or parts.password or parts.query or parts.fragment:
        # not quoted: it may hold a password
        raise ConfigurationError(
            "base_url must look like https://host[:port]/path, without user, password, query and "
            "fragment; a key goes into api_key."
        )
    return url.strip().rstrip("/")


def _checked_key(key: object) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str):
        raise ConfigurationError(f"api_key must be a string, not {type(key).__name__}.")
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("api_key must consist of printable ASCII without spaces.")
    return key or None


def _is_plaintext_to_others(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _error_text(body: bytes) -> str:
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
