"""What the commands that talk to a broker share: options, the connection, errors as exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from praval import Reef
from praval.core.transport_choice import Choice, choose
from praval.errors import (
    AgentError,
    ConfigurationError,
    FeatureUnavailableError,
    KnowledgeError,
    PravalError,
    ReefError,
    SporeTooLargeError,
    TopicError,
    TransportLoginError,
    TransportTLSError,
    TransportUnsupportedError,
    UnknownAgentError,
)
from praval.settings import Settings, current_settings

FAILED, REFUSED, BY_SIGNAL = 1, 2, 128

Transport = Annotated[
    str | None,
    typer.Option(
        "--transport",
        metavar="URL",
        help="The broker, e.g. amqps://user:password@host/?ca_cert=ca.pem; default: "
        "PRAVAL_TRANSPORT, which other users of this machine cannot see.",
        show_default=False,
    ),
]
Namespace = Annotated[str, typer.Option(help="Separates teams that share a broker.")]
NAMESPACE = "praval"

IMPOSSIBLE = (
    AgentError,
    ConfigurationError,
    FeatureUnavailableError,
    KnowledgeError,
    ReefError,
    SporeTooLargeError,
    TopicError,
    TransportLoginError,
    TransportTLSError,
    TransportUnsupportedError,
)
"""Errors that come again if the command is repeated as it is."""


def exit_code(error: PravalError) -> int:
    """Return 2 if something impossible was asked for, 1 if it failed on the way."""
    impossible = isinstance(error, IMPOSSIBLE) and not isinstance(error, UnknownAgentError)
    return REFUSED if impossible else FAILED


@contextmanager
def refusals(command: str) -> Iterator[None]:
    """Say what went wrong in a sentence, and end with the exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(BY_SIGNAL + signal.SIGINT) from None
    except PravalError as error:
        print(f"praval {command}: {error}", file=sys.stderr)
        raise typer.Exit(exit_code(error)) from None


def broker(transport: str | None) -> Choice:
    """Return how to connect to the broker that is meant.

    Raises:
        ConfigurationError: none is named, or it cannot be used.
    """
    settings = current_settings()
    url = transport or settings.transport
    if not url:
        raise ConfigurationError(
            "Which broker? Set PRAVAL_TRANSPORT, or use --transport, to its URL: "
            "amqps://user:password@host/, mqtts://..., stomp+ssl://... or rediss://..."
        )
    choice = choose(url, settings.transport_security)
    assert isinstance(choice, Choice)  # it was a URL
    return choice


def visitor(transport: str | None, namespace: str, settings: Settings | None = None) -> Reef:
    """Return a Reef without agents, which nobody sees: not entered, and without a journal."""
    broker(transport)
    return Reef(transport=transport, namespace=namespace, journal=False, settings=settings)
