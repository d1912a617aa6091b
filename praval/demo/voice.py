"""The reader's voice: a model for as long as there is one, quotations otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from praval.demo.sources import Source
from praval.demo.summaries import Digest, Summary, extract, from_answer, question
from praval.errors import NoModelError

GIVE_UP_AFTER = 3
"""Failures in a row after which a model is not asked again."""

Ask = Callable[[str], Awaitable[str]]


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
