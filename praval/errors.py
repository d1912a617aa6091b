"""Every error that Praval raises, as one tree.

::

    PravalError
    ├── ConfigurationError          a setting, an environment variable or an option is wrong
    │   └── UnknownNameError        no such key, provider, transport (suggests the near name)
    ├── AgentError                  an agent's declaration is wrong
    │   ├── HandlerSignatureError   the handler cannot be called with what is injected
    │   ├── DuplicateAgentError     the name is taken in this Reef
    │   └── UnknownAgentError       nobody has that name
    ├── SporeError                  a spore cannot be built or read
    │   ├── KnowledgeError          the knowledge cannot be encoded as JSON
    │   ├── SporeTooLargeError      over the size limit
    │   └── MalformedSporeError     bytes from outside that are not a spore
    ├── ReefError                   the Reef cannot do what was asked
    │   ├── ReefClosedError         it is not running (any more)
    │   ├── NoReefError             there is no Reef here
    │   ├── BlockingCallError       a blocking function was called on an event loop
    │   └── IdleTimeoutError        work was left when the time was up (also a TimeoutError)
    ├── DeliveryError               a delivery ended otherwise than handled
    │   ├── MailboxFullError        rejected: no room
    │   ├── BudgetError             rejected: the causal tree's spore budget or hop limit is spent
    │   ├── ExpiredError            its time to live was over
    │   ├── HandlerTimeoutError     the handler took longer than its ``timeout``
    │   └── CrashLoopError          it was begun again and again and its process died each time
    ├── RequestError                a request got no reply
    │   ├── RequestTimeoutError     not in time (also a TimeoutError)
    │   ├── RequestFailedError      the other agent failed, refused or was gone
    │   └── RequestCycleError       waiting for it would wait for ever
    ├── JournalError                the journal cannot be used
    │   ├── JournalLockedError      another process holds it
    │   └── JournalSchemaError      not a journal, or one of a newer version
    ├── TransportError              a broker, or the way to it, failed
    │   ├── TransportConnectionError    it cannot be reached, or hung up
    │   │   ├── TransportTLSError   a check of TLS failed; the message says which
    │   │   └── TransportLoginError the broker refused the user, password or certificate
    │   ├── TransportTimeoutError   it did not answer or confirm in time (also a TimeoutError)
    │   ├── TransportClosedError    the transport is not open
    │   ├── TransportUnsupportedError   this protocol or broker cannot do that
    │   ├── GroupInUseError         a group that is to be dropped has subscribers
    │   └── TopicError              a topic or pattern that cannot be used
    ├── CertificateError            a certificate cannot be made, found or revoked
    │   └── CertificateFolderError  the authority's folder cannot be read, written or had alone
    ├── AuditError                  the audit log cannot be used, or is not as it was written
    ├── SealError                   a sealed spore or the keys to it are refused: see ``code``
    │   ├── EnvelopeError           an envelope cannot be sealed or opened
    │   ├── CardError               a certificate, key card or status list is not to be trusted
    │   ├── ReplayError             the memory of what was handled refuses it, or cannot be used
    │   └── KeyringError            keys cannot be read, written or used
    │       └── PassphraseError     the passphrase is wrong, or the file was changed
    ├── ProviderError               a model could not be used
    │   ├── ProviderTimeoutError    no answer in time (also a TimeoutError)
    │   ├── NoModelError            there is no model at all (lists the ways to get one)
    │   ├── ProviderConnectionError no connection, or it broke off
    │   ├── ProviderProtocolError   the answer is not what the protocol promises
    │   ├── ProviderStatusError     refused with an HTTP status
    │   │   ├── ProviderAuthError   the key is missing, wrong, or not allowed to (401, 403)
    │   │   ├── RateLimitError      too many requests (429)
    │   │   └── OverloadedError     the provider is broken or too busy (500 and above)
    │   ├── CircuitOpenError        it failed so often that it is left alone for a while
    │   ├── ModelBudgetError        the budget of tokens or money is spent
    │   └── StructuredOutputError   the answer does not fit the wanted type
    ├── ToolError                   a tool cannot be used
    │   ├── ToolDefinitionError     a function cannot be a tool, or a tool is declared wrongly
    │   ├── ToolRoundsError         the model calls tools again and again
    │   └── ApprovalError           no such question to a human, or it is answered already
    └── FeatureUnavailableError     the guide has it, this version does not (yet)

Each message says what happened, why, and what to do.
"""

from __future__ import annotations

import enum


class PravalError(Exception):
    """Root of all errors that Praval raises itself."""


class ConfigurationError(PravalError, ValueError):
    """A setting, an environment variable or an option has a value that cannot be used."""


class UnknownNameError(ConfigurationError):
    """A key or plug-in name that does not exist; the message suggests the nearest one."""


class AgentError(PravalError):
    """An agent's declaration is wrong."""


class HandlerSignatureError(AgentError, TypeError):
    """The handler is no function, or cannot be called with what is injected."""


class DuplicateAgentError(AgentError, ValueError):
    """The name is taken in this Reef by another definition."""


class UnknownAgentError(AgentError, LookupError):
    """Nobody has that name."""


class SporeError(PravalError):
    """A spore cannot be built or read."""


class KnowledgeError(SporeError, TypeError):
    """The knowledge is not something JSON can carry."""


class SporeTooLargeError(SporeError, ValueError):
    """The encoded knowledge is over the size limit."""


class MalformedSporeError(SporeError, ValueError):
    """Bytes from outside that are not a spore."""


class ReefError(PravalError, RuntimeError):
    """The Reef cannot do what was asked."""


class ReefClosedError(ReefError):
    """The Reef is not running: not entered yet, closing, or closed."""


class NoReefError(ReefError):
    """There is no Reef in this place: a thread that no handler and no script owns."""


class BlockingCallError(ReefError):
    """A blocking function was called on an event loop; the message names its async twin."""


class IdleTimeoutError(ReefError, TimeoutError):
    """Work was still pending when the time was up."""


class DeliveryError(PravalError):
    """A delivery ended otherwise than handled."""


class MailboxFullError(DeliveryError):
    """The delivery was rejected because the mailbox has no room."""


class BudgetError(DeliveryError):
    """The delivery was rejected: its causal tree spent its spores, or its chain is too long."""


class ExpiredError(DeliveryError):
    """The spore's time to live was over when its turn came."""


class HandlerTimeoutError(DeliveryError, TimeoutError):
    """The handler took longer than the agent's ``timeout``."""


class CrashLoopError(DeliveryError):
    """The delivery was begun several times and its process died each time."""


class RequestError(PravalError):
    """A request got no reply."""


class RequestTimeoutError(RequestError, TimeoutError):
    """No reply arrived within the request's time-out."""


class RequestFailedError(RequestError):
    """The asked agent failed, refused the request, or was gone."""


class RequestCycleError(RequestError):
    """Every agent that could answer waits, in the end, for this very request."""


class JournalError(PravalError):
    """The journal cannot be used."""


class JournalLockedError(JournalError):
    """Another live process holds the journal."""


class JournalSchemaError(JournalError):
    """The file is not a journal, or one written by a newer version."""


class TransportError(PravalError):
    """A broker, or the way to it, failed."""


class TransportConnectionError(TransportError, ConnectionError):
    """The broker cannot be reached, or it ended the connection."""


class TransportTLSError(TransportConnectionError):
    """A check of TLS failed (certificate, host name, revocation, ...); the message says which."""


class TransportLoginError(TransportConnectionError):
    """The broker refused the user, the password or the client certificate."""


class TransportTimeoutError(TransportError, TimeoutError):
    """The broker did not answer, or did not confirm a message, in time."""


class TransportClosedError(TransportError):
    """The transport is not open: not initialised yet, or closed."""


class TransportUnsupportedError(TransportError, ValueError):
    """The protocol or the broker cannot do what was asked."""


class GroupInUseError(TransportError):
    """A group that is to be dropped has subscribers."""


class TopicError(TransportError, ValueError):
    """A topic or a pattern that cannot be used."""


class CertificateError(PravalError):
    """A certificate, or an authority's folder, is not as it must be for what was asked."""


class CertificateFolderError(CertificateError):
    """The authority's folder cannot be read or written, or another process holds it."""


class SealCode(enum.StrEnum):
    """Why something sealed is refused; the sender of an envelope is never told."""

    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNKNOWN_SENDER = "unknown_sender"
    STALE_CARD = "stale_card"
    REVOKED = "revoked"
    BAD_SIGNATURE = "bad_signature"
    NOT_FOR_ME = "not_for_me"
    NOT_A_RECIPIENT = "not_a_recipient"
    MISROUTED = "misrouted"
    NOT_PERMITTED = "not_permitted"
    NO_KEY = "no_key"
    BAD_DECRYPT = "bad_decrypt"
    IN_FLIGHT = "in_flight"
    DUPLICATE = "duplicate"
    REPLAY = "replay"
    RATE_LIMITED = "rate_limited"

    @property
    def retried(self) -> bool:
        """Whether it may be accepted a little later: a few, delayed attempts are worth it."""
        return self in _RETRIED

    @property
    def acknowledged(self) -> bool:
        """Whether nothing is wrong and the broker's copy is done with; all others dead-letter."""
        return self in (SealCode.NOT_A_RECIPIENT, SealCode.DUPLICATE)


_RETRIED = frozenset(
    {
        SealCode.NOT_YET_VALID,
        SealCode.UNKNOWN_SENDER,
        SealCode.STALE_CARD,
        SealCode.IN_FLIGHT,
        SealCode.RATE_LIMITED,
    }
)


class AuditError(PravalError):
    """The audit log cannot be used, or is not as it was written."""


class SealError(PravalError):
    """A sealed spore, or the keys to it, cannot be used; ``code`` says why in one word."""

    def __init__(self, message: str, code: SealCode = SealCode.MALFORMED) -> None:
        super().__init__(message)
        self.code = code


class EnvelopeError(SealError, ValueError):
    """An envelope cannot be sealed or opened; ``sender``: who signed it, once that is certain."""

    def __init__(
        self,
        message: str,
        code: SealCode = SealCode.MALFORMED,
        sender: str | None = None,
    ) -> None:
        super().__init__(message, code)
        self.sender = sender


class CardError(SealError, ValueError):
    """A certificate, a key card, a status list or a succession is not to be trusted."""


class ReplayError(SealError):
    """The replay memory does not belong to these keys, its clock jumped, or a lease is lost."""


class KeyringError(SealError):
    """Keys cannot be read, written or used."""

    def __init__(self, message: str, code: SealCode = SealCode.NO_KEY) -> None:
        super().__init__(message, code)


class PassphraseError(KeyringError):
    """The passphrase is wrong, or the encrypted file was changed; the two look the same."""


class ProviderError(PravalError):
    """A model provider failed or answered something unusable."""


class ProviderTimeoutError(ProviderError, TimeoutError):
    """The model did not answer in time."""


class NoModelError(ProviderError):
    """No model can be reached; the message lists the ways to get one."""


class ProviderConnectionError(ProviderError):
    """No connection to the provider, or it broke off."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent
        """Whether the request may have reached the provider: it is not repeated then."""


class ProviderProtocolError(ProviderError):
    """The provider's answer is not what its protocol promises, or ended too early."""


class ProviderStatusError(ProviderError):
    """The provider refused with an HTTP status; ``retry_after`` is its wish, in seconds."""

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ProviderAuthError(ProviderStatusError):
    """The key is missing, wrong, or not allowed to do this (401, 403)."""


class RateLimitError(ProviderStatusError):
    """Too many requests, or the quota is used up (429)."""


class OverloadedError(ProviderStatusError):
    """The provider is broken or too busy (500 and above)."""


class CircuitOpenError(ProviderError):
    """The provider failed so often in a row that it is left alone for a while."""


class ModelBudgetError(ProviderError):
    """The budget of tokens or money of this work is spent."""


class StructuredOutputError(ProviderError):
    """The answer does not fit the wanted type, not even after one repair."""


class ToolError(PravalError):
    """A tool cannot be used."""


class ToolDefinitionError(ToolError, TypeError):
    """A function cannot be a tool, or a tool is declared wrongly."""


class ToolRoundsError(ToolError):
    """The model called tools in more rounds than are allowed."""


class ApprovalError(ToolError, LookupError):
    """There is no such question to a human, or it has been answered already."""


class FeatureUnavailableError(PravalError):
    """The guide describes it; this version does not have it (yet)."""
