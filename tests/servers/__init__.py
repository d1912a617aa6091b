"""Private real servers for the tests, on free loopback ports, with TLS and the shipped settings.

No pytest is needed::

    with RabbitMQ() as server:
        ...  # server.url, server.pki.ca, server.kill(), server.start(), server.log_text()

The pytest fixtures are in `tests.servers.plugin`.
"""

from __future__ import annotations

from tests.servers.activemq import ActiveMQ
from tests.servers.front import TlsFront
from tests.servers.machine import ServerError, free_port
from tests.servers.mosquitto import Mosquitto
from tests.servers.pki import PKI, shared_pki
from tests.servers.postgresql import PostgreSQL
from tests.servers.process import Server, start_all
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.redis import Redis

__all__ = [
    "PKI",
    "ActiveMQ",
    "Mosquitto",
    "PostgreSQL",
    "RabbitMQ",
    "Redis",
    "Server",
    "ServerError",
    "TlsFront",
    "free_port",
    "shared_pki",
    "start_all",
]
