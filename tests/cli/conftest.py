"""A broker for the tests of commands."""

from __future__ import annotations

import pytest
from cli_brokers import Broker, broker_of


@pytest.fixture(params=["rabbitmq", "redis_server"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Two that differ; that each transport keeps the contract is shown in tests/transports."""
    return broker_of(request, request.param)


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Broker:
    """The one that starts fastest, where one is enough."""
    return broker_of(request, "redis_server")
