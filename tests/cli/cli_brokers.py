"""Brokers for the tests of commands, each test in a namespace of its own."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import pytest

from tests.servers import Server


class Broker(NamedTuple):
    """A real broker, and what a command needs to use it."""

    server: Server
    protocol: str
    namespace: str

    @property
    def url(self) -> str:
        return f"{self.server.url}?ca_cert={self.server.pki.ca}"

    @property
    def options(self) -> list[str]:
        """What every command takes to come here."""
        return ["--transport", self.url, "--namespace", self.namespace]

    @property
    def environment(self) -> dict[str, str]:
        return {"PRAVAL_TRANSPORT": self.url}


PROTOCOLS = {
    "rabbitmq": "amqp",
    "mosquitto": "mqtt",
    "activemq": "stomp",
    "redis_server": "redis",
}


def broker_of(request: pytest.FixtureRequest, name: str) -> Broker:
    server = request.getfixturevalue(name)
    assert isinstance(server, Server)
    return Broker(server, PROTOCOLS[name], f"cli-{secrets.token_hex(4)}")
