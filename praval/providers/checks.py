"""What a provider that speaks HTTP is made of, checked."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from praval.errors import ConfigurationError
from praval.tools.addresses import is_plaintext_to_others


def checked_url(url: object) -> str:
    """Return an address without what does not belong into one.

    Raises:
        ConfigurationError: it is none, or has a password.
    """
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


def checked_key(key: object) -> str | None:
    """Return a key as it fits into a header; None for an empty one.

    Raises:
        ConfigurationError: it cannot be one. It is not quoted.
    """
    if key is None:
        return None
    if not isinstance(key, str):
        raise ConfigurationError(f"api_key must be a string, not {type(key).__name__}.")
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("api_key must consist of printable ASCII without spaces.")
    return key or None


def check_headers(
    base_url: str, headers: Mapping[str, str], api_key: str | None, allow_plaintext: bool
) -> None:
    """Refuse headers that cannot be sent, and a key that must not be.

    Raises:
        ConfigurationError: one is no printable ASCII, or the key would travel unencrypted.
    """
    for name, value in headers.items():
        if not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"The header {name} must consist of printable ASCII.")
    if api_key and not allow_plaintext and is_plaintext_to_others(base_url):
        raise ConfigurationError(
            f"The API key for {base_url} would travel unencrypted: use https, or "
            "allow_plaintext=True in a network you trust."
        )


def check_defaults(model: object, temperature: object, max_tokens: object) -> None:
    """Refuse what calls without arguments of their own could not use.

    Raises:
        ConfigurationError: a value has the wrong type or range.
    """
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ConfigurationError("A provider's model must be a non-empty string.")
    if temperature is not None and not (
        isinstance(temperature, int | float)
        and not isinstance(temperature, bool)
        and 0 <= temperature < 1e9
    ):
        raise ConfigurationError("A provider's temperature must be 0 or more.")
    if max_tokens is not None and not (
        isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens >= 1
    ):
        raise ConfigurationError("A provider's max_tokens must be 1 or more.")
