"""How long keys and cards live, and what follows from it. Sans-IO; milliseconds."""

from __future__ import annotations

import msgspec

from praval.core.cards import LONGEST_LIFE, LONGEST_TTL
from praval.errors import ConfigurationError

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


class Lifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """The configured times; all else is derived from them. Milliseconds."""

    max_ttl: int = DAY
    """The longest life of a spore that is accepted."""
    skew: int = 2 * MINUTE
    """How far the clocks of two hosts may be apart."""
    rotation: int = DAY
    """How long a prekey and a signing key are in use."""
    card: int = 2 * DAY
    """How long a card is good for."""
    renewal: int = 12 * HOUR
    """After which a card is published anew."""

    def __post_init__(self) -> None:
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        for name, value in values.items():
            if type(value) is not int or value < 0 or (value == 0 and name != "skew"):
                raise ConfigurationError(f"{name} must be a whole number of ms, not {value!r}.")
        if self.renewal >= self.card:
            raise ConfigurationError(
                f"A card that is renewed every {self.renewal} ms must live longer than its "
                f"{self.card} ms. Renew it about four times in its life."
            )
        if self.card > LONGEST_LIFE or self.max_ttl > LONGEST_TTL:
            raise ConfigurationError("No card and no spore lives longer than 14 days.")

    @property
    def grace(self) -> int:
        """How long a replaced verify key stays listed, and a prekey no card lists stays there."""
        return self.max_ttl + 2 * self.skew

    @property
    def window(self) -> int:
        """The longest time from sealing to a prekey until that prekey is erased.

        This is the forward-secrecy window: who steals all keys of a recipient can read what was
        sealed to it within this time before, and nothing older.
        """
        return self.rotation + self.card + self.grace


DEFAULT = Lifetimes()
STRICT = Lifetimes(max_ttl=HOUR, rotation=HOUR, card=2 * HOUR, renewal=HOUR // 2)


def shown(milliseconds: int) -> str:
    """Write a duration for people: ``4 d 4 min``."""
    parts = []
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1000, "s")):
        amount, milliseconds = divmod(milliseconds, unit)
        if amount:
            parts.append(f"{amount} {name}")
    return " ".join(parts) or "0 s"
