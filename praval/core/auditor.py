"""What a sealed Reef writes into its audit log: security events and, if wanted, every spore."""

from __future__ import annotations

import asyncio

from praval.core.audit_log import AuditLog
from praval.core.envelope_format import Message
from praval.core.security_events import SecurityEvent
from praval.core.topics import join
from praval.settings import Settings


class Auditor:
    """An audit log at work; used on the Reef's loop, and never blocks it."""

    def __init__(self, log: AuditLog, *, all_messages: bool) -> None:
        self.log = log
        self._all_messages = all_messages

    @classmethod
    async def open(cls, settings: Settings, namespace: str, secret: bytes) -> Auditor:
        """Open the log of a namespace.

        Raises:
            AuditError, KeyringError: it cannot be written.
        """
        wanted = settings.audit
        opening = asyncio.ensure_future(
            asyncio.to_thread(
                AuditLog.open,
                settings.audit_path / join(namespace),
                secret,
                encrypted=wanted.encryption_at_rest,
                retention_days=wanted.retention_days,
            )
        )
        try:
            log = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_left_behind)
            raise
        return cls(log, all_messages=wanted.log_all_messages)

    async def aclose(self) -> None:
        """Write what waits, sign it, close."""
        await asyncio.to_thread(self.log.close)

    def noticed(self, event: SecurityEvent) -> None:
        """Take a security event; a listener of :class:`SecurityEvents`."""
        self.log.record(
            "refused",
            code=event.code.value,
            severity=event.severity,
            sender=event.sender,
            receiver=event.receiver,
            spore=event.spore,
            size=event.size,
        )

    def message(self, what: str, message: Message, *, agent: str | None = None) -> None:
        """Note that a spore was sent, received or ended, if that is wanted."""
        if not self._all_messages:
            return
        self.log.record(
            what,
            spore=message.id.hex(),
            sender=message.from_name,
            receiver=message.to_name or None,
            agent=agent,
            topic=message.topic,
            size=len(message.body),
            digest=self.log.keys.digest(message.body),
        )


def _left_behind(opening: asyncio.Future[AuditLog]) -> None:
    """A log was opened that nobody waits for any more: another Reef may have it."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().end()
