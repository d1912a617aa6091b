"""The reader's voice: a model for as long as there is one, quotations otherwise."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from praval.demo.sources import Source
from praval.demo.summaries import Digest, Summary, extract, from_answer, question
from praval.errors import NoModelError
from praval.providers.local import LocalProvider, why_unusable
from praval.providers.registry import get_provider, register_provider, registered_names
from praval.settings import current_settings

GIVE_UP_AFTER = 3
"""Failures in a row after which a model is not asked again."""

Ask = Callable[[str], Awaitable[str]]


def introduce(provider: str | None, model: str | None) -> str:
    """Return the name of the model that will be asked, "" if there is none.

    A local model that nobody set up gets one core fewer than there are: its threads wait for
    one another, and one that shares its core with the rest of the team holds up all.

    Args:
        provider, model: the user's choice; None: the configured default, else what there is.

    Raises:
        UnknownNameError: there is no such provider.
        NoModelError: there is no key for it.
        ConfigurationError: a package or a variable that it needs is missing.
    """
    settings = current_settings()
    default = settings.default_provider or next(iter(registered_names()), None)
    name = provider or default or ("local" if why_unusable(model) is None else None)
    if name is None:
        return ""
    if name == "local" and name not in registered_names():
        register_provider(name, LocalProvider(threads=max(1, (os.cpu_count() or 1) - 1)))
    models = [model or settings.default_model, *get_provider(name).get_available_models()]
    first = next(filter(None, models), "")
    return f"{name}, {Path(first).name}" if first else name


class Voice:
    """Summarises files; remembers whether its model still answers.

    Args:
        ask: puts a question to the model; None: every summary is a quotation.
        given_up: called once with the reason when the model will not be asked any more.
    """

    def __init__(self, ask: Ask | None, given_up: Callable[[str], object]) -> None:
        self._ask = ask
        self._given_up = given_up
        self._failures = 0

    async def summarise(self, source: Source, about: Digest) -> Summary:
        """Return the model's sentence, or one from the file with the reason in its note."""
        ask = self._ask
        quotation = extract(source.name, about)
        if ask is None or about.empty:
            return Summary(quotation, "extracted")
        try:
            answer = await ask(question(source.name, source.kind, about))
        except NoModelError as error:
            self._stop(str(error))
            return Summary(quotation, "extracted")
        except Exception as error:  # noqa: BLE001 - what a user's own provider raises, comes here
            return Summary(quotation, "extracted", self._failed(f"{error}" or repr(error)))
        self._failures = 0
        sentence = from_answer(answer)
        if not sentence:
            return Summary(quotation, "extracted", "the model gave no sentence")
        return Summary(sentence, "model")

    def _failed(self, why: str) -> str:
        self._failures += 1
        if self._failures >= GIVE_UP_AFTER:
            self._stop(f"it failed {GIVE_UP_AFTER} times in a row; at last: {why}")
        return f"the model failed: {' '.join(why.split())[:120]}"

    def _stop(self, why: str) -> None:
        if self._ask is not None:
            self._ask = None
            self._given_up(why)
