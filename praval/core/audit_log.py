"""The audit log: what was noticed and, if wanted, every message, in files nobody changes unnoticed.

Records carry names, ids, codes, sizes and digests, never content or keys. :meth:`AuditLog.record`
never blocks: a thread of the log's own writes, all that has come up at a time, and signs where the
chain stands (``praval.core.audit_chain``) every thousand lines, every minute, and at the end. What
does not fit into the queue is counted, and the count is written. While the disk refuses, the thread
tries again.

Guide: "Production Security Configuration" (audit and compliance).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from praval.core.audit_chain import AuditKeys, Chain, read_line
from praval.core.key_files import make_private, private_folder
from praval.errors import AuditError, KeyringError

log = logging.getLogger("praval.audit")

LINES, SECONDS = 1000, 60.0
"""Most lines, and seconds, between two checkpoints."""
MOST_WAITING = 100_000
"""Records that may wait for the disk."""
MOST_AT_ONCE = 2000
"""Records in one write."""
AGAIN = 1.0
"""Seconds after which a write that failed is tried again."""
LAST_TRIES = 3
"""Of these when the log is being closed."""
PATIENCE = 10.0
"""Seconds that closing waits for the disk."""


class AuditLog:
    """An open log; make one with :meth:`open`, which blocks, as :meth:`close` does."""

    def __init__(
        self,
        folder: Path,
        keys: AuditKeys,
        *,
        encrypted: bool,
        retention_days: float,
        clock: Callable[[], float],
    ) -> None:
        self.folder = folder
        self.keys = keys
        self.dropped = 0
        """Records for which there was no room."""
        self._encrypted = encrypted
        self._retention = timedelta(days=retention_days)
        self._clock = clock
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._chain = Chain()
        self._since = 0
        """Lines since the last checkpoint."""
        self._told = 0
        """Of those that were dropped, how many the log says."""
        self._descriptor = -1
        self._size = 0
        self._day = ""
        self._lock = -1
        self._closed = False
        self._gate = threading.Lock()
        """What is taken before the end is written, what comes later is counted."""
        self._thread = threading.Thread(target=self._serve, name="praval-audit", daemon=True)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        secret: bytes,
        *,
        encrypted: bool = False,
        retention_days: float = 365.0,
        clock: Callable[[], float] = time.time,
    ) -> AuditLog:
        """Open the log of a folder, or begin one.

        Args:
            folder: only its owner may enter it.
            secret: 32 bytes: the keyring's ``audit_key``.
            encrypted: whether records are encrypted.
            retention_days: days after which a file is deleted.
            clock: UTC seconds.

        Raises:
            AuditError: another process writes it, or it cannot be read.
            KeyringError: the folder is not private, or cannot be made.
        """
        path = Path(folder)
        private_folder(path)
        found = cls(
            path,
            AuditKeys(secret),
            encrypted=encrypted,
            retention_days=retention_days,
            clock=clock,
        )
        found._begin()
        found._thread.start()
        return found

    def __repr__(self) -> str:
        return f"<AuditLog {self.folder}>"

    def record(self, event: str, **fields: Any) -> None:
        """Write a record soon; never blocks, from whatever thread."""
        item = {"at": self._now(), "event": event, **fields}
        with self._gate:
            if self._closed or self._queue.qsize() >= MOST_WAITING:
                self.dropped += 1
            else:
                self._queue.put(item)

    def end(self) -> None:
        """Take no more; what waits is written and signed soon. Never blocks."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def close(self) -> None:
        """Write what waits and sign it; blocks, a few seconds at most. Harmless the second time."""
        self.end()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.error("the audit log %s was not written to its end: see above", self.folder)

    # -- files ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AuditError(
                    f"Another process, or another Reef, writes the audit log {self.folder}: give "
                    "each a folder of its own (audit.log_path)."
                ) from None
            if files := files_of(self.folder):
                self._continue(files)
            self._write([{"at": self._now(), "event": "opened", "pid": os.getpid()}])
            self._sign()
        except BaseException:
            self._release()
            raise

    def _continue(self, files: list[Path]) -> None:
        """Go on after the last whole line; a process that died may have left a file without one."""
        self._use(files[-1])
        torn = 0
        for file in reversed(files):
            data = file.read_bytes()
            end = data.rfind(b"\n") + 1
            if file is files[-1] and (torn := len(data) - end):
                os.ftruncate(self._descriptor, end)
                self._size = end
            if end:
                self._chain = _end_of(file, data[:end])
                break
        if torn:
            self._write([{"at": self._now(), "event": "torn", "bytes": torn}])

    def _use(self, file: Path) -> None:
        make_private(file)
        before, self._descriptor = self._descriptor, os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
        if before >= 0:
            os.close(before)
        self._size = os.fstat(self._descriptor).st_size
        self._day = file.stem

    def _roll(self) -> None:
        """Begin the file of today, if it is another than before; forget the oldest."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        today = f"{now:%Y-%m-%d}"
        if today > self._day:  # a clock that goes back leaves the file as it is
            if self._descriptor >= 0:
                self._sign()
            self._use(self.folder / f"{today}.log")
            oldest = f"{now - self._retention:%Y-%m-%d}"
            for file in files_of(self.folder):
                if file.stem < oldest:
                    file.unlink()
        if not self._size:  # also if the disk refused, or the process died, after the file was made
            self._sign()

    def _release(self) -> None:
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    # -- the thread ----------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            signed = time.monotonic()
            while True:
                batch, is_last = self._take()
                self._insist(batch)
                if is_last or self._since >= LINES or time.monotonic() - signed > SECONDS:
                    if self._since:
                        self._insist(None)
                    signed = time.monotonic()
                if is_last:
                    return
        finally:
            self._release()

    def _take(self) -> tuple[list[dict[str, Any]], bool]:
        """Wait for records; return them, and whether no more will come."""
        batch: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=SECONDS)
            while item is not None and len(batch) < MOST_AT_ONCE:
                batch.append(item)
                item = self._queue.get_nowait()
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _insist(self, batch: list[dict[str, Any]] | None) -> None:
        """Write a batch, or sign (None); again while the disk refuses, at the end a few times."""
        tries = 0
        while True:
            try:
                if batch is None:
                    self._sign()
                else:
                    self._write(batch)
                return
            except (OSError, KeyringError) as error:  # the latter: the file of a new day
                log.error("the audit log %s cannot be written: %s", self.folder, error)
                tries += 1
                if self._closed and tries > LAST_TRIES:
                    with self._gate:
                        self.dropped += len(batch or ())
                    return
                time.sleep(AGAIN)

    def _write(self, batch: list[dict[str, Any]]) -> None:
        self._roll()
        dropped = self.dropped
        if dropped > self._told:
            batch = [*batch, {"at": self._now(), "event": "dropped", "count": dropped}]
        keys = self.keys if self._encrypted else None
        self._append(
            lambda chain: b"".join(chain.record(fields, keys, os.urandom) for fields in batch)
        )
        self._told = dropped
        self._since += len(batch)

    def _sign(self) -> None:
        self._append(lambda chain: chain.checkpoint(self.keys, self._now()))
        os.fsync(self._descriptor)
        self._since = 0

    def _append(self, lines: Callable[[Chain], bytes]) -> None:
        """Add lines to the file, all or none."""
        chain = Chain(self._chain.n, self._chain.last)
        data = lines(chain)
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], self._size + done)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += done
        self._chain = chain

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _end_of(file: Path, data: bytes) -> Chain:
    """Return the end of a file's whole lines.

    Raises:
        AuditError: it is no audit log, or was changed.
    """
    lines = data.splitlines()
    try:
        first, last = read_line(lines[0]).checkpoint(), read_line(lines[-1])
    except AuditError as error:
        raise AuditError(
            f"The audit log {file} cannot be continued: {error}. Look at it with `praval audit "
            "verify`, then move the folder away: a new log is begun."
        ) from None
    return Chain(first.n + len(lines), last.hash)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a log, the oldest first."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].log"))
