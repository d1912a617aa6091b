"""Any server that speaks the OpenAI protocol (``POST {base_url}/chat/completions``)."""

from __future__ import annotations

from typing import Any

import msgspec

from praval.errors import ConfigurationError, FeatureUnavailableError, ProviderError
from praval.providers.base import Messages
from praval.providers.http import HttpProvider
from praval.settings import environment


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class OpenAICompatibleProvider(HttpProvider):
    """Speaks to vLLM, Ollama, llama.cpp, LM Studio, OpenAI itself and others.

    ::

        register_provider("mine", OpenAICompatibleProvider("http://localhost:8000/v1"))
        chat("Hello", provider="mine", model="some-model")

    Args:
        base_url: up to but without ``/chat/completions``; default: ``OPENAI_BASE_URL``.
        api_key: sent as bearer token; default: ``OPENAI_API_KEY``, and only if ``base_url`` comes
            from the environment too. Pass none for servers without keys.
        model: what calls without ``model=`` use.
        allow_plaintext: send the key over plain http to another host.

    Raises:
        ConfigurationError: no base_url, or one or a key that cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        if base_url is None:
            base_url = environment().get("OPENAI_BASE_URL", "")
            api_key = api_key or environment().get("OPENAI_API_KEY")
        if not base_url:
            raise ConfigurationError(
                'The provider "openai_compatible" does not know its server: set OPENAI_BASE_URL, '
                "or register_provider(name, OpenAICompatibleProvider(base_url=...))."
            )
        super().__init__(base_url, api_key, allow_plaintext=allow_plaintext)
        self.model = model

    async def achat(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> str:
        """Return the model's answer; ``options`` go into the request as they are.

        Raises:
            ProviderError: no connection, an error status, or an answer without text.
            ConfigurationError: no model was named, or an option cannot be written as JSON.
        """
        model = model or self.model
        if not model:
            raise ConfigurationError(
                f"{self!r} needs the name of a model: model=, @agent(model=...) or "
                "PRAVAL_DEFAULT_MODEL."
            )
        if options.get("stream"):
            raise FeatureUnavailableError(
                "Streaming is not in this version yet: leave out stream=True."
            )
        body = {**options, "model": model, "messages": messages}
        return self._text(await self.post("/chat/completions", body, timeout))

    def get_available_models(self) -> list[str]:
        """Return the default model, if there is one."""
        return [self.model] if self.model else []

    def _text(self, body: bytes) -> str:
        try:
            choice = msgspec.json.decode(body, type=_Completion).choices[0]
        except (msgspec.DecodeError, RecursionError, IndexError) as error:
            excerpt = self.redacted(body.decode(errors="replace"))
            raise ProviderError(
                f"{self.base_url} answered something that is no chat completion "
                f"({error}): {excerpt!r}. Does base_url end where /chat/completions begins?"
            ) from None
        if choice.message.content is None:
            raise ProviderError(
                f"{self.base_url} answered without text (finish_reason "
                f"{choice.finish_reason!r}): tool calls and refusals are not text."
            )
        return choice.message.content
