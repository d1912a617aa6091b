"""A small certificate authority for the team's own TLS: CA, leaf certificates, revocation.

Built on ``cryptography`` (the extra ``[certs]``), loaded when this room is first entered. All
calls block; none is meant for a running loop. The command is ``praval certs``.

Guide: "Certificate Management".
"""

from __future__ import annotations

from praval.errors import CertificateError

try:
    from praval.certs.authority import Authority
    from praval.certs.issued import Issued
except ModuleNotFoundError as error:
    if error.name != "cryptography":
        raise
    raise CertificateError(
        "Certificates need the package cryptography, which is not installed. "
        'Install it with: pip install "praval-asyncio[certs]"'
    ) from error

__all__ = ["Authority", "Issued"]
