"""The TLS context that all providers share."""

from __future__ import annotations

import functools
import logging
import ssl
import threading
from importlib.util import find_spec

from praval.errors import ConfigurationError

_lock = threading.Lock()


@functools.cache
def _tls_context() -> ssl.SSLContext:
    import anyio
    import httpcore  # noqa: F401 - or the first request imports it on the loop: 0.1 s
    import httpx

    if has_http2():
        import h2.connection  # noqa: F401 - as above
        import hpack

        # at DEBUG it logs each header with its value, the key among them
        logging.getLogger(hpack.__name__).setLevel(logging.INFO)
    anyio.run(anyio.sleep, 0)  # as above: loads what anyio needs under asyncio

    return httpx.create_ssl_context()


@functools.cache
def has_http2() -> bool:
    """Whether the package that speaks HTTP/2 is installed."""
    return find_spec("h2") is not None


def tls_context() -> ssl.SSLContext:
    """Return the TLS context that all providers share (slow when first made: not on a loop).

    Raises:
        ConfigurationError: httpx is not installed.
    """
    try:
        with _lock:
            return _tls_context()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Models over HTTP need the package {error.name!r}, which is not installed. "
            'Install it with: pip install "praval-asyncio[providers]"'
        ) from error
