"""What providers that speak HTTP share: one client per loop, one TLS context, clear errors.

A key given to a provider leaves it only in its header: it is in no message, repr or log,
redirects are not followed, and what a server answers is searched for it before it is quoted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from praval.errors import (
    ConfigurationError,
    ProviderConnectionError,
    ProviderProtocolError,
    ProviderStatusError,
    ProviderTimeoutError,
)
from praval.providers.base import RequestProvider
from praval.providers.cancelling import Progress, closed, finishing
from praval.providers.checks import check_defaults, check_headers, checked_key, checked_url
from praval.providers.messages import ChatRequest, Response
from praval.providers.refusals import quoted, refusal
from praval.providers.sse import ANSWER_LIMIT, Event, EventDecoder
from praval.providers.tls import has_http2, tls_context

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class Collector:
    """Puts a streamed answer together; one per stream, written by each vendor's provider."""

    def take(self, event: Event) -> str:
        """Take an event in and return the text that it adds, if any.

        Raises:
            ProviderError: the event reports a failure.
        """
        raise NotImplementedError

    def response(self) -> Response | None:
        """Return the whole answer, or None if it is not complete."""
        raise NotImplementedError


class HttpProvider(RequestProvider):
    """Base of providers that speak JSON over HTTP.

    Raises:
        ConfigurationError: ``base_url`` or ``api_key`` cannot be used, or the key would travel
            unencrypted to another host (``allow_plaintext=True`` permits that).
    """

    takes_timeout: ClassVar[bool] = True
    path: ClassVar[str]
    """Where requests go, behind ``base_url``."""
    answers: ClassVar[str]
    """What the server is to answer, for messages: "a chat completion"."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        self.base_url = checked_url(base_url)
        self.model = model
        """What calls without ``model=`` use."""
        check_defaults(model, temperature, max_tokens)
        self.temperature = temperature
        self.max_tokens = max_tokens
        self._api_key = checked_key(api_key)
        self._client: httpx.AsyncClient | None = None
        self._client_loop: asyncio.AbstractEventLoop | None = None
        check_headers(self.base_url, self.headers(), self._api_key, allow_plaintext)

    # -- what each vendor's provider writes ----------------------------------------------

    def body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        """Return the vendor's JSON for a request whose defaults are filled in."""
        raise NotImplementedError

    def parse(self, answer: Any, request: ChatRequest) -> Response:
        """Read the vendor's answer; raise ``msgspec.ValidationError`` if it is none."""
        raise NotImplementedError

    def collector(self, request: ChatRequest) -> Collector:
        """Return what puts a streamed answer together."""
        raise NotImplementedError

    def headers(self) -> dict[str, str]:
        """Return the headers of every request; the key goes into one of them."""
        return {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}

    # -- asking --------------------------------------------------------------------------

    async def respond(self, request: ChatRequest) -> Response:
        """Return the model's answer; ``request.timeout`` in seconds covers the whole of it.

        Raises:
            ProviderConnectionError: no connection, or it broke off.
            ProviderStatusError: the server refused.
            ProviderProtocolError: the answer is not the vendor's JSON.
            ProviderTimeoutError: no complete answer in time.
            ConfigurationError: the request cannot be written as JSON, or names no model.
        """
        request = self.completed(request)
        content = self._encoded(self.body(request, stream=False))
        client = await self._open()
        progress = Progress()
        traced = {"trace": progress.trace}

        async def fetch() -> tuple[httpx.Response, bytes]:
            url = self.base_url + self.path
            async with client.stream("POST", url, content=content, extensions=traced) as response:
                return response, await self._body(response)

        async with self._errors(request.timeout):
            response, body = await finishing(fetch(), progress)
        if response.status_code != 200:
            raise self.refused(response.status_code, response.headers, body)
        try:
            return self.parse(msgspec.json.decode(body), request)
        except (msgspec.DecodeError, RecursionError, LookupError) as error:
            raise self._no_answer(error, body) from None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | Response, None]:
        """Yield the answer's text as it arrives and, last, the whole as one Response.

        Who stops early closes the generator (``aclose``): that closes the connection.
        ``request.timeout`` in seconds is for the beginning, and then for each piece.

        Raises:
            ProviderError: as :meth:`respond`; a stream that ends too early is a
                ProviderProtocolError or, if the connection broke, a ProviderConnectionError.
        """
        request = self.completed(request)
        content = self._encoded(self.body(request, stream=True))
        client = await self._open()
        progress = Progress()
        traced = {"trace": progress.trace}
        collector, decoder = self.collector(request), EventDecoder()
        headers = {"Accept": "text/event-stream"}
        async with contextlib.AsyncExitStack() as connection:

            async def begin() -> httpx.Response:
                url = self.base_url + self.path
                asked = client.build_request(
                    "POST", url, content=content, headers=headers, extensions=traced
                )
                response = await client.send(asked, stream=True)
                # here, and not where it is awaited: whoever is cancelled there gets no response
                connection.push_async_callback(closed, response)
                return response

            async with self._errors(request.timeout):
                response = await finishing(begin(), progress)
                if response.status_code != 200:
                    body = await self._body(response)
                    raise self.refused(response.status_code, response.headers, body)
            pieces = response.aiter_bytes()
            while True:
                async with self._errors(request.timeout):
                    piece = await finishing(_next(pieces))
                if piece is None:
                    break
                for event in decoder.feed(piece):
                    try:
                        text = collector.take(event)
                    except (msgspec.DecodeError, RecursionError, LookupError) as error:
                        raise self._no_answer(error, event.data.encode()) from None
                    if text:
                        yield text
        whole = collector.response()
        if whole is None:
            raise ProviderProtocolError(
                f"The stream from {self.base_url} ended before the answer was complete."
            )
        yield whole

    def completed(self, request: ChatRequest) -> ChatRequest:
        """Return the request with this provider's defaults filled in.

        Raises:
            ConfigurationError: there is no model to ask.
        """
        model = request.model or self.model
        if not model:
            raise ConfigurationError(
                f"{self!r} needs the name of a model: model=, @agent(model=...) or "
                "PRAVAL_DEFAULT_MODEL."
            )
        changes: dict[str, Any] = {"model": model}
        for name in ("temperature", "max_tokens"):
            if getattr(request, name) is None:
                changes[name] = getattr(self, name)
        return msgspec.structs.replace(request, **changes)

    def get_available_models(self) -> list[str]:
        """Return the default model, if there is one."""
        return [self.model] if self.model else []

    def fingerprint(self) -> str:
        """Return class, address and defaults: what else decides on the answer."""
        defaults = (self.base_url, self.model, self.temperature, self.max_tokens)
        return f"{super().fingerprint()} {defaults}"

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderStatusError:
        """Return the error for an answer with an error status."""
        return refusal(self, status, headers, body)

    def redacted(self, text: str) -> str:
        """Return ``text``, shortened, without the API key."""
        return quoted(text, self._api_key)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # -- inside --------------------------------------------------------------------------

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return msgspec.json.encode(body)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"The options of a model call must be JSON: {error}") from None

    @contextlib.asynccontextmanager
    async def _errors(self, timeout: float | None) -> AsyncIterator[None]:
        """Turn what httpx raises into errors of ours; ``timeout`` in seconds."""
        import httpx  # _open() imported it in a thread, or said that it is missing

        scope = asyncio.timeout(timeout)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise ProviderTimeoutError(
                f"{self.base_url} did not answer within {timeout} s. Allow more with timeout=, "
                "or PRAVAL_REQUEST_TIMEOUT."
            ) from None
        except httpx.HTTPError as error:
            reason = self.redacted(str(error)) or "no reason given"
            raise ProviderConnectionError(
                f"The request to {self.base_url} failed: {type(error).__name__}: {reason}. "
                "Is the server running, and base_url right?",
                sent=not isinstance(error, httpx.ConnectError),
            ) from error

    async def _body(self, response: httpx.Response) -> bytes:
        """Read an answer to its end; one without end would fill the memory."""
        pieces, size = [], 0
        async for piece in response.aiter_bytes():
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_LIMIT:
                raise ProviderProtocolError(
                    f"{self.base_url} answered more than {ANSWER_LIMIT} bytes."
                )
        return b"".join(pieces)

    def _no_answer(self, error: Exception, body: bytes) -> ProviderProtocolError:
        excerpt = self.redacted(body.decode(errors="replace"))
        return ProviderProtocolError(
            f"{self.base_url} answered something that is no {self.answers} ({error}): "
            f"{excerpt!r}. Does base_url end where {self.path} begins?"
        )

    async def _open(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._client_loop is loop:
            return self._client
        context = await asyncio.to_thread(tls_context)
        if self._client is None or self._client_loop is not loop:  # nobody was faster
            import httpx

            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            # no time-outs of its own: the one above covers the whole request
            self._client = httpx.AsyncClient(
                headers={**headers, **self.headers()},
                timeout=None,
                **self._client_options(context),
            )
            self._client_loop = loop
        return self._client

    def _client_options(self, context: ssl.SSLContext) -> dict[str, Any]:
        import httpx

        # many servers close idle connections after 5 s: ours are given up before, or a request
        # could be sent into one that is just being closed
        limits = httpx.Limits(
            max_connections=100, max_keepalive_connections=100, keepalive_expiry=4.0
        )
        return {"verify": context, "limits": limits, "http2": has_http2()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}>"


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    """Return the next piece, or None at the end."""
    return await anext(pieces, None)
