"""Where a secure store may lie: what the tests of stores and of replay memories run on."""

from __future__ import annotations

from itertools import count
from urllib.parse import urlencode

import pytest

from praval.core.key_vaults import Vault, vault_for
from tests.servers import Server

SERVERS = {"postgres": "postgres", "redis": "redis_server"}
"""Kind of store -> the fixture of its server."""

_numbers = count()


def url(server: Server, store: str | None = None) -> str:
    """The URL of a store of its own on a server."""
    options = {"store": store or f"s{next(_numbers)}", "ca_cert": str(server.pki.ca)}
    return f"{server.url}?{urlencode(options)}"


def vault(request: pytest.FixtureRequest, kind: str) -> Vault:
    """An empty vault on a real server, over TLS."""
    server = request.getfixturevalue(SERVERS[kind])
    assert isinstance(server, Server)
    found = vault_for(url(server))
    request.addfinalizer(found.close)
    return found
