"""What OpenSSL's own command says of the files, at its strictest."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from praval.certs import Authority
from praval.errors import CertificateError


def openssl(*arguments: object) -> tuple[int, str]:
    """Run the command; returns its exit code and all it said."""
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def verify(authority: Authority, cert: Path, *options: object) -> tuple[int, str]:
    """Verify a certificate with every check that RFC 5280 has."""
    trusted = ("-CAfile", authority.ca_cert, "-CRLfile", authority.crl)
    return openssl("verify", "-x509_strict", "-crl_check", *trusted, *options, cert)


@pytest.mark.parametrize(("kind", "purpose"), [("server", "sslserver"), ("client", "sslclient")])
def test_certificates_pass_the_strictest_checks(
    authority: Authority, kind: str, purpose: str
) -> None:
    """CA, leaf and revocation list carry every extension that RFC 5280 wants of them."""
    issued = authority.issue("broker", hosts=["localhost", "127.0.0.1"], kind=kind)  # type: ignore[arg-type]
    host = ("-verify_hostname", "localhost", "-verify_ip", "127.0.0.1")
    assert verify(authority, issued.cert, "-purpose", purpose, *host) == (
        0, f"{issued.cert}: OK\n",
    )  # fmt: skip


def test_revocation_is_seen(authority: Authority) -> None:
    """Error 23, with or without the strict checks."""
    issued = authority.issue("broker", hosts=["localhost"])
    authority.revoke("broker")
    code, said = verify(authority, issued.cert)
    assert (code, "certificate revoked" in said) == (2, True)


def test_a_revocation_list_is_valid_for_thirty_days_or_as_long_as_asked(
    authority: Authority,
) -> None:
    """Past its time it proves nothing any more, and the check fails."""
    issued = authority.issue("broker", hosts=["localhost"])

    def after(days: int) -> tuple[int, bool]:
        then = datetime.now(UTC) + timedelta(days=days)
        code, said = verify(authority, issued.cert, "-attime", int(then.timestamp()))
        return code, "CRL has expired" in said

    assert after(29) == (0, False)
    assert after(31) == (2, True)
    authority.refresh_crl(days=60)
    assert after(31) == (0, False)


def test_the_authority_signs_no_further_authorities(authority: Authority) -> None:
    """A leaf that signs is refused: path length 0, and no right to sign."""
    code, said = openssl("x509", "-in", authority.ca_cert, "-noout", "-ext", "basicConstraints")
    assert (code, "CA:TRUE, pathlen:0" in said, "critical" in said) == (0, True, True)


def test_java_stores_hold_key_chain_and_trust(authority: Authority) -> None:
    """The key store has the key and both certificates; the trust store marks the CA as trusted."""
    authority.issue("activemq", hosts=["localhost"])
    keystore, truststore = authority.java_stores("activemq", "s3cret-word")
    assert keystore.name == "activemq.p12"
    code, said = openssl("pkcs12", "-in", keystore, "-passin", "pass:s3cret-word", "-noenc")
    assert code == 0, said
    assert said.count("BEGIN CERTIFICATE") == 2
    assert said.count("BEGIN PRIVATE KEY") == 1
    code, said = openssl("pkcs12", "-in", truststore, "-passin", "pass:s3cret-word", "-nokeys")
    assert code == 0, said
    assert "subject=CN=Praval CA" in said.replace(" = ", "=")
    assert "2.16.840.1.113894.746875.1.1" in said or "Trusted key usage (Oracle)" in said


def test_java_stores_are_closed_to_a_wrong_password(authority: Authority) -> None:
    """The whole file is encrypted, and signed."""
    authority.issue("activemq", hosts=["localhost"])
    for store in authority.java_stores("activemq", "s3cret-word"):
        code, said = openssl("pkcs12", "-in", store, "-passin", "pass:another", "-nokeys")
        assert (code, "invalid password" in said) == (1, True)


def test_java_stores_need_a_password_and_a_key(authority: Authority) -> None:
    """Nothing is written if something is missing."""
    issued = authority.issue("activemq", hosts=["localhost"])
    with pytest.raises(CertificateError, match="password"):
        authority.java_stores("activemq", "")
    with pytest.raises(CertificateError, match="No certificate was issued for 'artemis'"):
        authority.java_stores("artemis", "s3cret-word")
    issued.key.unlink()
    with pytest.raises(CertificateError, match=r"activemq-key\.pem cannot be read"):
        authority.java_stores("activemq", "s3cret-word")
    assert not list(authority.folder.glob("*.p12"))


def test_a_replaced_certificate_has_no_store_any_more(authority: Authority) -> None:
    """Its key is gone: that of the newer one does not fit it."""
    old = authority.issue("activemq", hosts=["localhost"])
    authority.issue("activemq", hosts=["localhost"], force=True)
    (old, _) = authority.issued()
    with pytest.raises(CertificateError, match="replaced"):
        old.pkcs12("s3cret-word")
