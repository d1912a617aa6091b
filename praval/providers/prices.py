"""What models cost: a table that the user can extend, by call or by file.

The table was read in November 2026 from what vendors publish for ordinary requests with short
prompts. It is an aid and no bill: discounts, long prompts and service tiers are not in it.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import msgspec

from praval.errors import ConfigurationError
from praval.providers.messages import Usage
from praval.settings import current_settings, environment

FILE = "prices.json"
"""Name of the user's table under the data directory; ``PRAVAL_PRICES`` names another."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens; ``cached`` None: as ``input``."""

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """Return what this usage costs, in dollars."""
        cached = self.input if self.cached is None else self.cached
        fresh = max(0, usage.input_tokens - usage.cached_tokens)
        return (
            fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output
        ) / 1_000_000


BUILTIN: dict[str, Price] = {
    "gpt-6-sol": Price(2, 10, 0.2),
    "gpt-6-luna": Price(0.1, 0.5, 0.01),
    "gpt-6.1-sol": Price(2, 10, 0.1),
    "gpt-6.1-terra": Price(1, 5, 0.05),
    "gpt-5.6-sol": Price(4, 20),
    "gpt-5": Price(1.25, 10, 0.125),
    "gpt-5-mini": Price(0.25, 2, 0.025),
    "gpt-5-nano": Price(0.05, 0.4, 0.005),
    "gpt-4.1": Price(2, 8, 0.5),
    "gpt-4.1-mini": Price(0.4, 1.6, 0.1),
    "gpt-4.1-nano": Price(0.1, 0.4, 0.025),
    "gpt-4o": Price(2.5, 10, 1.25),
    "gpt-4o-mini": Price(0.15, 0.6, 0.075),
    "gpt-4-turbo": Price(10, 30),
    "gpt-4": Price(30, 60),
    "gpt-3.5-turbo": Price(0.5, 1.5),
    "o3": Price(2, 8, 0.5),
    "o4-mini": Price(1.1, 4.4, 0.275),
    "claude-fable-5-1": Price(10, 50, 0.25),
    "claude-opus-5-5": Price(4, 20, 0.2),
    "claude-sonnet-5-5": Price(2, 10, 0.1),
    "claude-sonnet-5": Price(2, 10, 0.2),
    "claude-haiku-5-5": Price(0.1, 0.5, 0.01),
    "claude-opus-4-8": Price(5, 25, 0.5),
    "claude-opus-4-7": Price(5, 25, 0.5),
    "claude-opus-4-6": Price(5, 25, 0.5),
    "claude-opus-4-5": Price(5, 25, 0.5),
    "claude-sonnet-4-6": Price(3, 15, 0.3),
    "claude-sonnet-4-5": Price(3, 15, 0.3),
    "claude-haiku-4-5": Price(1, 5, 0.1),
    "claude-3-opus": Price(15, 75, 1.5),
    "claude-3-sonnet": Price(3, 15, 0.3),
    "claude-3-haiku": Price(0.25, 1.25, 0.03),
    "command-a": Price(2.5, 10),
    "command-r-plus": Price(2.5, 10),
    "command-r7b": Price(0.0375, 0.15),
    "command-r": Price(0.15, 0.6),
}
"""Model -> price. A dated name (``gpt-4o-2024-08-06``) has the price of the name without date."""


_SUFFIX = re.compile(r"-(\d{4}-\d\d-\d\d|\d{8}|\d\d-\d{4}|\d{4}|latest)")
"""What may follow a name without making it another model."""


class _Prices:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.own: dict[str, Price] = {}
        self.file: dict[str, Price] | None = None


_prices = _Prices()


def set_price(model: str, input: float, output: float, cached: float | None = None) -> None:
    """Set what a model costs, in US dollars per million tokens.

    Args:
        model: its name; dated names of it (``...-2026-01-31``, ``...-latest``) cost the same.
        input: tokens sent.
        output: tokens answered, thoughts included.
        cached: tokens sent that the provider had in its cache; default: as ``input``.

    Raises:
        ConfigurationError: a price is no number of at least 0.
    """
    given = (input, output, *(() if cached is None else (cached,)))
    if not all(isinstance(n, int | float) and 0 <= n < 1e9 for n in given):
        raise ConfigurationError(f"The price of {model!r} must be numbers of at least 0.")
    with _prices.lock:
        _prices.own[model] = Price(input, output, cached)


def price_of(model: str | None) -> Price | None:
    """Return a model's price: yours, your file's, or the built-in one; None: unknown.

    Reads the file on first use: not on an event loop, see :func:`load_prices`.
    """
    if model is None:
        return None
    for table in (_prices.own, load_prices(), BUILTIN):
        name = model if model in table else _undated(model)
        if name in table:
            return table[name]
    return None


def load_prices() -> dict[str, Price]:
    """Read the user's table, once.

    Raises:
        ConfigurationError: the file is no table of prices.
    """
    with _prices.lock:
        if _prices.file is None:
            _prices.file = _read()
        return _prices.file


def are_loaded() -> bool:
    """Whether the user's table has been read."""
    return _prices.file is not None


def forget_prices() -> None:
    """Forget what :func:`set_price` set, and read the user's table again at the next use."""
    with _prices.lock:
        _prices.own.clear()
        _prices.file = None


def _undated(model: str) -> str:
    found = _SUFFIX.search(model)
    return model[: found.start()] if found and found.end() == len(model) else model


def _read() -> dict[str, Price]:
    named = environment().get("PRAVAL_PRICES", "").strip()
    path = Path(named).expanduser() if named else current_settings().data_path / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Price])
    except FileNotFoundError:
        if named:
            raise ConfigurationError(f"PRAVAL_PRICES names {path}, which does not exist.") from None
        return {}
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigurationError(
            f"{path} is no table of prices ({error}). Write: "
            '{"model": {"input": 1.0, "output": 2.0}} in dollars per million tokens.'
        ) from None
