"""The audit log as bytes: a chain of lines, and what can be said about one that is found. Sans-IO.

::

    <hash> c{"at":...,"n":...,"previous":...,"signature":...}     a signed checkpoint
    <hash> p{"at":...,"event":...}                                a record
    <hash> e<base64>                                              a record, encrypted

The hash, BLAKE2b-256, is over the one before it and the rest of the line, so that no line can be
changed, taken out, put in or moved without all later ones. Whoever can write the file could compute
them anew; the signatures, with a key that is not in the file, say where the chain stood. What is
after the last signature is only as good as the file's protection, and who cuts the log at an older
signature is found by whoever has seen a later one (``praval audit verify --seen``).

A log is a series of files, one a day; each begins with a checkpoint that continues the one before.
The oldest may be gone: they are kept for a number of days.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from praval.core.envelope import Random
from praval.core.key_types import SigningKey, VerifyKey, decrypt, encrypt
from praval.errors import AuditError

LABEL = b"praval.audit.v1"
HASH = 64
"""Characters of a hash."""
START = b"\0" * 32
"""The hash before the first line of all."""
CHECKPOINT, PLAIN, SEALED = b"c", b"p", b"e"


class AuditKeys:
    """What an audit log needs of secrets, made of one."""

    def __init__(self, secret: bytes) -> None:
        self._signing = SigningKey(_derived(secret, b"sign"))
        self._box, self._digest = _derived(secret, b"box"), _derived(secret, b"digest")

    def __repr__(self) -> str:
        return f"<AuditKeys {bytes(self.verify_key).hex()}, secret>"

    @property
    def verify_key(self) -> VerifyKey:
        """Checks the signatures of checkpoints; to be kept elsewhere than the log."""
        return self._signing.verify_key

    def sign(self, data: bytes) -> bytes:
        """Sign where the chain stands."""
        return self._signing.sign(LABEL, data)

    def seal(self, data: bytes, random: Random) -> bytes:
        """Encrypt a record."""
        nonce = random(24)
        return nonce + encrypt(data, nonce, self._box)

    def open(self, sealed: bytes) -> bytes | None:
        """Decrypt a record; None: it is no record of this log."""
        return decrypt(sealed[24:], sealed[:24], self._box)

    def digest(self, content: bytes) -> str:
        """Return what tells equal contents from others, and nothing else about them."""
        return blake2b(content, key=self._digest, digest_size=8).hexdigest()


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the chain stood."""

    at: int
    """UTC milliseconds."""
    n: int
    """Lines before this one, from the first of all."""
    previous: str
    """Hash of the line before this one."""
    signature: bytes

    def signed(self) -> bytes:
        """Return what the signature is over."""
        return self.n.to_bytes(8, "big") + bytes.fromhex(self.previous) + self.at.to_bytes(8, "big")


class Chain:
    """The end of a chain, to which lines are added."""

    def __init__(self, n: int = 0, last: bytes = START) -> None:
        self.n, self.last = n, last

    def record(
        self, fields: Mapping[str, Any], sealed_by: AuditKeys | None, random: Random
    ) -> bytes:
        """Return the next line for a record; ``sealed_by``: encrypt it."""
        data = msgspec.json.encode(fields)
        if sealed_by is None:
            return self._line(PLAIN + data)
        return self._line(SEALED + base64.b64encode(sealed_by.seal(data, random)))

    def checkpoint(self, keys: AuditKeys, at: int) -> bytes:
        """Return the next line, a checkpoint."""
        unsigned = Checkpoint(at, self.n, self.last.hex(), b"")
        signed = msgspec.structs.replace(unsigned, signature=keys.sign(unsigned.signed()))
        return self._line(CHECKPOINT + msgspec.json.encode(signed))

    def _line(self, payload: bytes) -> bytes:
        self.last = _hash(self.last, payload)
        self.n += 1
        return self.last.hex().encode() + b" " + payload + b"\n"


class Line(NamedTuple):
    """A line of a file."""

    hash: bytes
    kind: bytes
    data: bytes

    def checkpoint(self) -> Checkpoint:
        """Read it as a checkpoint.

        Raises:
            AuditError: it is none.
        """
        try:
            found = msgspec.json.decode(self.data, type=Checkpoint)
            if self.kind == CHECKPOINT and len(found.previous) == HASH and found.signed():
                return found
        except (msgspec.DecodeError, ValueError, OverflowError, RecursionError):
            pass
        raise AuditError("it is no checkpoint")

    def record(self, keys: AuditKeys | None) -> dict[str, Any] | None:
        """Read it as a record; None: it is encrypted, and there is no key.

        Raises:
            AuditError: it is none.
        """
        data: bytes | None = self.data
        try:
            if self.kind == SEALED:
                if keys is None:
                    return None
                data = keys.open(base64.b64decode(self.data, validate=True))
            if data is not None:
                return msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, binascii.Error, UnicodeError, RecursionError):
            pass
        raise AuditError("it is no record, or one of another log")


def read_line(raw: bytes) -> Line:
    """Read a line without its end.

    Raises:
        AuditError: it is none.
    """
    hashed, space, payload = raw.partition(b" ")
    if len(hashed) != HASH or not space or payload[:1] not in (CHECKPOINT, PLAIN, SEALED):
        raise AuditError("it is no line of an audit log")
    try:
        found = bytes.fromhex(hashed.decode())
    except ValueError:
        raise AuditError("it is no line of an audit log") from None
    if found.hex().encode() != hashed:
        raise AuditError("its hash is not written as hashes are")
    return Line(found, payload[:1], payload[1:])


class Verifier:
    """Follows a chain from file to file."""

    def __init__(self, key: VerifyKey | None) -> None:
        """Make one; without a ``key`` only the chain is checked, not who has made it."""
        self._key = key
        self._chain: Chain | None = None
        self.first = 0
        """Lines that are gone before the first one."""
        self.signed = 0
        """Lines up to the last checkpoint, from the first of all."""
        self.checkpoints: dict[int, str] = {}
        """Lines before a checkpoint -> the hash of the last of them."""
        self.torn = 0
        """Bytes of a line that was not written to its end: its process died."""

    @property
    def lines(self) -> int:
        """Lines so far, from the first of all."""
        return self.first if self._chain is None else self._chain.n

    def read(self, data: bytes, *, is_last: bool) -> Iterator[tuple[int, Line]]:
        """Check a file; yields the number and the content of each line that is good.

        Raises:
            AuditError: which line is not, and why. All before it are as they were written.
        """
        *whole, rest = data.split(b"\n")
        if rest and not is_last:
            raise AuditError("its last line is not whole, and another file follows")
        self.torn = len(rest)
        for number, raw in enumerate(whole, 1):
            try:
                yield number, self._check(read_line(raw), is_first=number == 1)
            except AuditError as error:
                raise AuditError(f"line {number}: {error}") from None

    def _check(self, line: Line, *, is_first: bool) -> Line:
        if is_first and line.kind != CHECKPOINT:
            raise AuditError("the file does not begin with a checkpoint")
        mark = line.checkpoint() if line.kind == CHECKPOINT else None
        if self._chain is None:
            assert mark is not None
            self._chain, self.first = Chain(mark.n, bytes.fromhex(mark.previous)), mark.n
        chain = self._chain
        if mark is not None:
            if (mark.n, mark.previous) != (chain.n, chain.last.hex()):
                raise AuditError("it does not continue what is before it: lines are missing")
            if self._key is not None and not self._key.verify(LABEL, mark.signed(), mark.signature):
                raise AuditError("its signature is wrong: it was made with another key, or changed")
        if not hmac.compare_digest(_hash(chain.last, line.kind + line.data), line.hash):
            raise AuditError("it was changed, or lines before it were changed or are missing")
        if mark is not None:
            self.checkpoints[mark.n] = mark.previous
            self.signed = mark.n
        chain.n, chain.last = chain.n + 1, line.hash
        return line


def _hash(before: bytes, payload: bytes) -> bytes:
    return blake2b(before + payload, digest_size=32, person=b"praval.audit").digest()


def _derived(secret: bytes, what: bytes) -> bytes:
    return blake2b(what, key=secret, digest_size=32, person=b"praval.audit").digest()
