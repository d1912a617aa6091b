"""Which addresses a secret must not be sent to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_plaintext_to_others(url: str) -> bool:
    """Whether what is sent to this address travels unencrypted to another machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
